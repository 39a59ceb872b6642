"""The embedded index, a folder that is complete when it contains `index.json`.

tantivy stores the terms and the row number of each passage. A memory-mapped Arrow file stores the passages, so a search
decompresses no document.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import tantivy
from numpy.typing import NDArray

from tlm_core.artifacts.faults import synced
from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexMismatch, IndexUnavailable, NotFound, StorageFull
from tlm_core.json_files import read_json
from tlm_core.selection.index import K1, MAX_TERMS, Hit, best_terms, ranked, tie_at_cut
from tlm_core.selection.text_analysis import Analysis, analysis_of, terms

SCHEMA_VERSION = 1
THREADS = 2
_METADATA = "index.json"
_TERMS = "terms"
_PASSAGES = "passages.arrow"
_COLUMNS = pa.schema([("id", pa.large_string()), ("text", pa.large_string()), ("source", pa.large_string())])
_BATCH = 4096
_SLACK = 10  # hits requested beyond k, so that one search resolves most ties at rank k
# One thread, and no automatic flush or merge between two commits: then equal passages give equal segments, and equal
# segments give bitwise equal scores.
_SEGMENT = 100_000
_HEAP_BYTES = 500_000_000
_MIN_FREE_BYTES = 20_000_000
_DISK_FULL = ("No space left", "Disk quota exceeded", "File too large")


class TantivyIndex:
    """A PassageIndex in a local folder."""

    def __init__(self, folder: Path, analysis: Analysis, index: tantivy.Index) -> None:
        self.folder = folder
        self.analysis = analysis
        self._index = index
        # The terms are already analyzed and joined by spaces.
        index.register_tokenizer("blanks", tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build())
        self._writer: _Writer | None = None
        self._reader: _Reader | None = None
        self._incomplete = False

    @classmethod
    def create(cls, folder: Path, language: str) -> Self:
        """Create an index in `folder`, which must be missing or empty."""
        (folder / _TERMS).mkdir(parents=True)
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("terms", tokenizer_name="blanks", index_option="freq")
        builder.add_integer_field("row", fast=True)
        with _tantivy_errors(folder):
            index = tantivy.Index(builder.build(), path=str(folder / _TERMS))
            created = cls(folder, analysis_of(language), index)
            created._writer, created._incomplete = _Writer(folder, created.analysis, index), True
        return created

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the committed index in `folder`. Raises NotFound if there is none, IndexMismatch if it is unusable."""
        try:
            metadata = read_json(folder / _METADATA)
        except FileNotFoundError as error:
            raise NotFound(f"{folder} contains no complete index. Load the corpus again.") from error
        except ValueError as error:
            raise _mismatch(folder, f"cannot read {_METADATA}") from error
        if metadata.get("schema") != SCHEMA_VERSION:
            raise _mismatch(folder, "another release of the service wrote the index")
        try:
            index = tantivy.Index.open(str(folder / _TERMS))
            opened = cls(folder, metadata["analysis"], index)
            opened._reader = _Reader(folder, opened.analysis, index)
        except (ValueError, OSError) as error:  # errors of pyarrow are ValueError or OSError too
            raise _mismatch(folder, str(error)) from error
        if opened.count() != metadata["count"]:
            raise _mismatch(folder, f"it contains {opened.count()} passages instead of {metadata['count']}")
        return opened

    def add(self, batch: Sequence[Passage]) -> None:
        with _tantivy_errors(self.folder):
            self._write.add(batch)

    def commit(self, expected: int | None = None) -> None:
        with _tantivy_errors(self.folder):
            count = self._write.finish()
        self._writer = None
        if expected is not None and count != expected:
            raise IndexMismatch(
                f"The index contains {count} passages instead of {expected}. Check that each passage has its own id."
            )
        metadata = {"schema": SCHEMA_VERSION, "analysis": self.analysis, "count": count}
        with _tantivy_errors(self.folder), synced(self.folder / _METADATA) as handle:
            handle.write(json.dumps(metadata).encode())
        self._incomplete = False
        self._reader = _Reader(self.folder, self.analysis, self._index)

    def count(self) -> int:
        return self._read.count

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        with _tantivy_errors(self.folder):
            return self._read.search(queries, k)

    def fetch(self, ids: Collection[str]) -> dict[str, Passage]:
        return self._read.fetch(ids)

    def ids(self) -> Iterator[list[str]]:
        return self._read.ids()

    def close(self) -> None:
        """Release files and threads, and delete the folder of an incomplete index."""
        if self._writer is not None:
            self._writer.abort()
        if self._reader is not None:
            self._reader.close()
        self._writer = self._reader = None
        if self._incomplete:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _write(self) -> _Writer:
        if self._writer is None:
            raise Conflict("The index is complete or closed. Load more passages as another version of the corpus.")
        return self._writer

    @property
    def _read(self) -> _Reader:
        if self._reader is None:
            raise Conflict("Cannot read the index: it is closed or not committed. Open it again, or commit it first.")
        return self._reader


class _Writer:
    """Writes terms to tantivy, and passages to the Arrow file, in the order of `add`."""

    def __init__(self, folder: Path, analysis: Analysis, index: tantivy.Index) -> None:
        self._analysis = analysis
        self._index = index
        self._writer = index.writer(heap_size=_HEAP_BYTES, num_threads=1)
        self._handle = open(folder / _PASSAGES, "wb")  # noqa: SIM115 - closed by finish and abort
        self._file = pa.ipc.new_file(self._handle, _COLUMNS)
        self._seen: set[str] = set()
        self._pending: list[Passage] = []

    def add(self, batch: Sequence[Passage]) -> None:
        for passage in batch:
            if passage.id in self._seen:
                continue
            document = tantivy.Document()
            document.add_text("terms", " ".join(terms(passage.text, self._analysis)))
            document.add_integer("row", len(self._seen))
            self._writer.add_document(document)
            self._seen.add(passage.id)
            self._pending.append(passage)
            if len(self._pending) >= _BATCH:
                self._write_pending()
            if len(self._seen) % _SEGMENT == 0:
                self._end_segment()

    def _write_pending(self) -> None:
        columns = zip(*self._pending, strict=True) if self._pending else ((), (), ())
        self._file.write_batch(pa.record_batch([pa.array(c, pa.large_string()) for c in columns], schema=_COLUMNS))
        self._pending.clear()

    def _end_segment(self) -> None:
        self._writer.commit()
        self._writer.wait_merging_threads()
        self._writer = self._index.writer(heap_size=_HEAP_BYTES, num_threads=1)

    def finish(self) -> int:
        """Write all added passages to disk and return their number."""
        self._write_pending()
        self._file.close()
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        self._writer.commit()
        self._writer.wait_merging_threads()
        return len(self._seen)

    def abort(self) -> None:
        """Discard the terms that are not committed, and close the files."""
        # After a failed call, the next calls fail too. Their errors must not replace the first error.
        with suppress(OSError):
            self._handle.close()
        with suppress(ValueError):
            self._writer.rollback()
            self._writer.wait_merging_threads()


class _Reader:
    """Searches and reads a committed index."""

    def __init__(self, folder: Path, analysis: Analysis, index: tantivy.Index) -> None:
        self._analysis = analysis
        self._schema = index.schema
        # A committed index never changes, so one reload is enough. By default, a thread reloads it again and writes a
        # lock file, even while the folder is being deleted.
        index.config_reader("manual")
        index.reload()
        self._searcher = index.searcher()
        file = pa.ipc.open_file(pa.memory_map(str(folder / _PASSAGES)))
        self._batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._id_of_row = pa.chunked_array([batch["id"] for batch in self._batches], pa.large_string()).combine_chunks()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="tantivy")

    @property
    def count(self) -> int:
        return int(self._searcher.num_docs)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return list(self._pool.map(lambda query: self._search(query, k), queries))

    def _search(self, text: str, k: int) -> list[Hit]:
        counts = dict(Counter(terms(text, self._analysis)))
        if len(counts) > MAX_TERMS:
            counts = best_terms(counts, lambda term: int(self._searcher.doc_freq("terms", term)), self.count)
        if not counts or not self.count:
            return []
        query = self._query(counts)
        limit = k + _SLACK
        while True:
            hits = self._searcher.search(query, limit=min(limit, self.count), count=False).hits
            if len(hits) < limit or not tie_at_cut([score for score, _ in hits], k):
                break
            limit *= 8
        rows = self._searcher.fast_field_values("row", [address for _, address in hits])
        ids = self._id_of_row.take(pa.array(rows, pa.int64())).to_pylist()
        # tantivy multiplies scores by k1 + 1; the scores of a PassageIndex omit this factor.
        return ranked([Hit(name, score / (K1 + 1)) for name, (score, _) in zip(ids, hits, strict=True)], k)

    def _query(self, counts: dict[str, int]) -> tantivy.Query:
        """Return a query for any term of `counts` (term → weight), without a parser that could read terms as syntax."""
        clauses = []
        for term, count in counts.items():
            clause = tantivy.Query.term_query(self._schema, "terms", term, "freq")
            clauses.append(clause if count == 1 else tantivy.Query.boost_query(clause, float(count)))
        return tantivy.Query.boolean_query([(tantivy.Occur.Should, clause) for clause in clauses])

    def fetch(self, ids: Collection[str]) -> dict[str, Passage]:
        wanted = set(ids)
        rows = self._rows_of(wanted)
        passages: dict[str, Passage] = {}
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            in_batch = rows[numbers == number] - self._starts[number]
            records = self._batches[number].take(pa.array(in_batch)).to_pylist()
            passages.update((record["id"], Passage(**record)) for record in records if record["id"] in wanted)
        if missing := wanted - passages.keys():
            raise NotFound(f"Passage '{min(missing)}' is not in the index. Load the corpus again.")
        return passages

    def _rows_of(self, ids: Collection[str]) -> NDArray[np.int64]:
        """Return the row numbers of passages whose id has the same hash as one of `ids`."""
        keys, rows = self._by_hash
        wanted = np.fromiter(map(hash, ids), np.int64, len(ids))
        first, end = (np.searchsorted(keys, wanted, side=side) for side in ("left", "right"))
        lengths = end - first
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.unique(rows[np.repeat(first, lengths) + within])

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sorted hashes of all ids, and the row number of each. Both arrays need 16 bytes per passage."""
        hashes = np.fromiter((hash(name) for batch in self.ids() for name in batch), np.int64, len(self._id_of_row))
        rows = np.argsort(hashes)
        return hashes[rows], rows

    def ids(self) -> Iterator[list[str]]:
        return (batch["id"].to_pylist() for batch in self._batches)

    def close(self) -> None:
        self._pool.shutdown()


def _mismatch(folder: Path, reason: str) -> IndexMismatch:
    return IndexMismatch(f"Invalid index in {folder}: {reason}. Delete the folder. Load the corpus again.")


@contextmanager
def _tantivy_errors(folder: Path) -> Iterator[None]:
    """Translate errors into StorageFull or IndexUnavailable.

    tantivy raises ValueError for each failure. If one of its threads fails, the message does not state the cause.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if any(text in str(error) for text in _DISK_FULL) or shutil.disk_usage(folder).free < _MIN_FREE_BYTES:
            raise StorageFull(
                f"No space left for the index in {folder}. Free some space. A waiting load then continues. If no load "
                "waits, load the corpus again."
            ) from error
        raise IndexUnavailable(
            f"The index in {folder} failed: {error}. Try again, or load the corpus again."
        ) from error
