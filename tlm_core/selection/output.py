"""The Parquet files of a selection. Equal rows give equal bytes, and few rows are in memory at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tlm_core.corpus.leaks import Leak
from tlm_core.corpus.passages import word_count
from tlm_core.selection.candidates import Candidate
from tlm_core.selection.retrieve import Retrieved

PASSAGES = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("rank", pa.int32()), ("score", pa.float32())]
)
PROVENANCE = pa.schema(
    [("passage_id", pa.string()), ("train_row", pa.int64()), ("rank", pa.int32()), ("score", pa.float32())]
)
LEAKS = pa.schema([("passage_id", pa.string()), ("split", pa.string()), ("row", pa.int64()), ("rule", pa.string())])
_GROUP_ROWS = 20_000
_SLICE = 2_000


def write_rows(path: Path, schema: pa.Schema, batches: Iterable[Iterable[Iterable[object]]]) -> None:
    """Write batches of rows to a Parquet file, in row groups of about equal size and without a timestamp.

    A batch has one sequence of values for each column of `schema`. The value None becomes null.
    """
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        pending: list[pa.RecordBatch] = []
        for columns in batches:
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            pending.append(pa.record_batch(arrays, schema=schema))
            if sum(batch.num_rows for batch in pending) >= _GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(pending))
                pending.clear()
        if pending:
            writer.write_table(pa.Table.from_batches(pending))


@dataclass(frozen=True)
class WrittenPassages:
    """Facts about written passages. positions: `Candidate.position` of each. sources: source → number of passages."""

    positions: NDArray[np.int64]
    sources: Counter[str]
    words: int


def write_passages(path: Path, batches: Iterable[list[Candidate]], between: Callable[[], None]) -> WrittenPassages:
    """Write the passages, and return facts about them. `between` is called before each batch, and can raise to stop."""
    positions = [np.empty(0, np.int64)]
    sources: Counter[str] = Counter()
    words = 0

    def columns() -> Iterator[Iterable[Iterable[object]]]:
        nonlocal words
        for batch in batches:
            between()
            if batch:
                passages = [candidate.passage for candidate in batch]
                positions.append(np.array([candidate.position for candidate in batch], np.int64))
                sources.update(passage.source for passage in passages)
                words += sum(word_count(passage.text) for passage in passages)
                ranks, scores = [candidate.rank for candidate in batch], [candidate.score for candidate in batch]
                yield *zip(*passages, strict=True), ranks, scores

    write_rows(path, PASSAGES, columns())
    return WrittenPassages(np.concatenate(positions), sources, words)


def write_provenance(path: Path, retrieved: Retrieved | None, positions: NDArray[np.int64]) -> None:
    """Write pairs of a passage at `positions` (sorted) and a train row that retrieved it, by passage, rank and row."""
    write_rows(path, PROVENANCE, _provenance(retrieved, positions) if retrieved else ())


def _provenance(retrieved: Retrieved, positions: NDArray[np.int64]) -> Iterator[Iterable[Iterable[object]]]:
    row_arrays = [np.array(query_rows, np.int64) for query_rows in retrieved.query_rows]
    for start in range(0, len(positions), _SLICE):
        part = positions[start : start + _SLICE]
        first = np.searchsorted(retrieved.hit_position, part[0], "left")
        end = np.searchsorted(retrieved.hit_position, part[-1], "right")
        hits = first + np.flatnonzero(np.isin(retrieved.hit_position[first:end], part))
        rows_of_hit = [row_arrays[query] for query in retrieved.hit_query[hits].tolist()]
        repeated = np.repeat(hits, [len(train_rows) for train_rows in rows_of_hit])
        train_rows = np.concatenate(rows_of_hit)
        position, rank = retrieved.hit_position[repeated], retrieved.hit_rank[repeated]
        order = np.lexsort((train_rows, rank, position))
        ids = retrieved.ids.take(pa.array(position[order]))
        yield ids, train_rows[order], rank[order], retrieved.hit_score[repeated][order]


def write_leaks(path: Path, leaks: Sequence[tuple[str, Leak]]) -> None:
    """Write one row for each pair of a passage id and a leak."""
    rows = [(passage_id, *leak) for passage_id, leak in leaks]
    write_rows(path, LEAKS, [zip(*rows, strict=True)] if rows else ())
