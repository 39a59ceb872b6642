"""The embedded index: tantivy for the terms, an Arrow file beside it for the passages themselves.

The folder is written once and is whole when `index.json` lies in it. tantivy holds for each passage its terms and its
row; ids and texts are read from the memory-mapped Arrow file by row, so a search decompresses no stored document.
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
from typing import Any

import numpy as np
import pyarrow as pa
import tantivy
from numpy.typing import NDArray

from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexMismatch, IndexUnavailable, NotFound, StorageFull
from tlm_core.selection.analysis import Analysis, analysis_of, terms
from tlm_core.selection.index import K1, MAX_TERMS, Hit, best_terms, ranked, tie_at_cut

SCHEMA_VERSION = 1
THREADS = 2
_META = "index.json"
_TERMS = "terms"
_PASSAGES = "passages.arrow"
_COLUMNS = pa.schema([("id", pa.large_string()), ("text", pa.large_string()), ("source", pa.large_string())])
_BATCH = 4096
_SLACK = 10  # hits asked for beyond k, so that most ties at the cut are seen at once
# One thread and no flush or merge of its own accord between two commits: the same passages then always give the same
# segments, and with them the same last bits of every score.
_SEGMENT = 100_000
_HEAP_BYTES = 500_000_000
_LEAST_FREE_BYTES = 20_000_000
_NO_ROOM = ("No space left", "Disk quota exceeded", "File too large")


class TantivyIndex:
    """A PassageIndex on a local folder: `create` it, add, commit; later `open` it."""

    def __init__(self, folder: Path, analysis: Analysis, index: Any) -> None:
        self.folder = folder
        self.analysis = analysis
        self._index = index
        index.register_tokenizer("blanks", _blanks())
        self._writer: _Writer | None = None
        self._reader: _Reader | None = None
        self._half = False

    @classmethod
    def create(cls, folder: Path, language: str) -> TantivyIndex:
        """An empty index in `folder`, which must not exist or be empty."""
        (folder / _TERMS).mkdir(parents=True)
        with _tantivy_errors(folder):
            index = tantivy.Index(_schema(), path=str(folder / _TERMS))
            made = cls(folder, analysis_of(language), index)
            made._writer, made._half = _Writer(folder, made.analysis, index), True
        return made

    @classmethod
    def open(cls, folder: Path) -> TantivyIndex:
        """The committed index in `folder`. Raises NotFound if there is none, IndexMismatch if it is of another make."""
        try:
            meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise NotFound(f"{folder} holds no whole index; load the corpus again") from error
        except ValueError as error:
            raise IndexMismatch(f"{folder}/{_META} cannot be read; delete the folder, load the corpus again") from error
        if meta.get("schema") != SCHEMA_VERSION:
            raise IndexMismatch(f"{folder} was made by another release; delete it and load the corpus again")
        try:
            index = tantivy.Index.open(str(folder / _TERMS))
            opened = cls(folder, meta["analysis"], index)
            opened._reader = _Reader(folder, opened.analysis, index)
        except (ValueError, OSError) as error:  # pyarrow's errors are ValueError or OSError as well
            raise IndexMismatch(f"{folder} cannot be opened ({error}); delete it and load the corpus again") from error
        if opened.count() != meta["count"]:
            raise IndexMismatch(f"{folder} holds {opened.count()} passages, not {meta['count']}; load the corpus again")
        return opened

    def add(self, batch: Sequence[Passage]) -> None:
        if self._writer is None:
            raise Conflict("the index is committed; load another version of the corpus instead")
        with _tantivy_errors(self.folder):
            self._writer.add(batch)

    def commit(self, expected: int | None = None) -> None:
        if self._writer is None:
            raise Conflict("the index is committed already")
        with _tantivy_errors(self.folder):
            count = self._writer.finish()
        self._writer = None
        if expected is not None and count != expected:
            raise IndexMismatch(f"{count} passages are in the index, not {expected}; are the ids of the corpus unique?")
        meta = {"schema": SCHEMA_VERSION, "analysis": self.analysis, "count": count}
        with _tantivy_errors(self.folder), _synced(self.folder / _META) as handle:
            handle.write(json.dumps(meta).encode())
        self._half = False
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
        """As the port says. Half an index is of no use to anyone: its folder goes."""
        if self._writer is not None:
            self._writer.abandon()
        if self._reader is not None:
            self._reader.close()
        self._writer = self._reader = None
        if self._half:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _read(self) -> _Reader:
        if self._reader is None:
            raise Conflict("the index is not committed, or closed")
        return self._reader


class _Writer:
    """Adds passages: terms to tantivy, the passage itself to the Arrow file, both in the order of adding."""

    def __init__(self, folder: Path, analysis: Analysis, index: Any) -> None:
        self._analysis = analysis
        self._index = index
        self._writer = index.writer(heap_size=_HEAP_BYTES, num_threads=1)
        self._handle = open(folder / _PASSAGES, "wb")  # noqa: SIM115 - lives as long as the writer
        self._file = pa.ipc.new_file(self._handle, _COLUMNS)
        self._seen: set[str] = set()
        self._pending: list[Passage] = []
        self._uncommitted = 0

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
            self._uncommitted += 1
            if len(self._pending) >= _BATCH:
                self._write_pending()
            if self._uncommitted >= _SEGMENT:
                self._end_segment()

    def _write_pending(self) -> None:
        columns = zip(*self._pending, strict=True) if self._pending else ((), (), ())
        self._file.write_batch(pa.record_batch([pa.array(c, pa.large_string()) for c in columns], schema=_COLUMNS))
        self._pending.clear()

    def _end_segment(self) -> None:
        self._writer.commit()
        self._writer.wait_merging_threads()
        self._writer = self._index.writer(heap_size=_HEAP_BYTES, num_threads=1)
        self._uncommitted = 0

    def finish(self) -> int:
        """Write everything out. Answers the number of passages."""
        self._write_pending()
        self._file.close()
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        self._writer.commit()
        self._writer.wait_merging_threads()
        return len(self._seen)

    def abandon(self) -> None:
        """Stop; what was written is of no use."""
        # What has failed fails here once more, which must not hide why it did.
        with suppress(OSError):
            self._handle.close()
        with suppress(ValueError):
            self._writer.rollback()
            self._writer.wait_merging_threads()


class _Reader:
    """Searches and reads a committed folder."""

    def __init__(self, folder: Path, analysis: Analysis, index: Any) -> None:
        self._analysis = analysis
        self._schema = index.schema
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
            found = self._searcher.search(query, limit=min(limit, self.count), count=False).hits
            if len(found) < limit or not tie_at_cut([score for score, _ in found], k):
                break
            limit *= 8
        rows = self._searcher.fast_field_values("row", [address for _, address in found])
        names = self._id_of_row.take(pa.array(rows, pa.int64())).to_pylist()
        # tantivy multiplies with k1 + 1, which changes no order; the common scale leaves it out.
        return ranked([Hit(name, score / (K1 + 1)) for name, (score, _) in zip(names, found, strict=True)], k)

    def _query(self, counts: dict[str, int]) -> Any:
        """Any of the terms, each as often as it counts. Built, never parsed: no text can be query syntax."""
        clauses = []
        for term, count in counts.items():
            clause = tantivy.Query.term_query(self._schema, "terms", term, "freq")
            clauses.append(clause if count == 1 else tantivy.Query.boost_query(clause, float(count)))
        return tantivy.Query.boolean_query([(tantivy.Occur.Should, clause) for clause in clauses])

    def fetch(self, ids: Collection[str]) -> dict[str, Passage]:
        wanted = set(ids)
        rows = self._rows_of(wanted)
        found: dict[str, Passage] = {}
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            inside = rows[numbers == number] - self._starts[number]
            taken = self._batches[number].take(pa.array(inside)).to_pylist()
            found.update((row["id"], Passage(**row)) for row in taken if row["id"] in wanted)
        if missing := wanted - found.keys():
            raise NotFound(f"passage '{min(missing)}' is not in the index")
        return found

    def _rows_of(self, ids: Collection[str]) -> NDArray[np.int64]:
        """Rows of `ids`, and of what shares a hash with one of them."""
        keys, rows = self._by_hash
        wanted = np.fromiter(map(hash, ids), np.int64, len(ids))
        lefts, rights = (np.searchsorted(keys, wanted, side=side) for side in ("left", "right"))
        lengths = rights - lefts
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.unique(rows[np.repeat(lefts, lengths) + within])

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Hashes of all ids, rising, and their rows: a look-up costs no pass over the ids. 16 bytes a passage."""
        hashes = np.fromiter((hash(name) for batch in self.ids() for name in batch), np.int64, len(self._id_of_row))
        rows = np.argsort(hashes)
        return hashes[rows], rows

    def ids(self) -> Iterator[list[str]]:
        return (batch["id"].to_pylist() for batch in self._batches)

    def close(self) -> None:
        self._pool.shutdown()


def _schema() -> Any:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("terms", tokenizer_name="blanks", index_option="freq")
    builder.add_integer_field("row", fast=True)
    return builder.build()


def _blanks() -> Any:
    """Terms come ready made with blanks between them."""
    return tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build()


@contextmanager
def _tantivy_errors(folder: Path) -> Iterator[None]:
    """tantivy tells every fault as a ValueError, and one in its own threads without the cause."""
    try:
        yield
    except (ValueError, OSError) as error:
        if any(sign in str(error) for sign in _NO_ROOM) or shutil.disk_usage(folder).free < _LEAST_FREE_BYTES:
            raise StorageFull(f"no room left for the index in {folder}; free some and load the corpus again") from error
        raise IndexUnavailable(f"the index in {folder} does not work: {error}") from error


@contextmanager
def _synced(path: Path) -> Iterator[Any]:
    """A new file that is on disk, whole, under its name when the block ends."""
    partial = path.with_suffix(".part")
    with open(partial, "wb") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)
