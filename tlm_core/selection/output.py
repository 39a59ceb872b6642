"""The Parquet files of a selection. Equal rows give equal bytes, and few rows are in memory at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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


class RowWriter:
    """Writes a Parquet file batch by batch, in row groups of about equal size and without a timestamp."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending: list[pa.RecordBatch] = []

    def __enter__(self) -> RowWriter:
        return self

    def write(self, *columns: Iterable[object]) -> None:
        """Append rows. columns: the values of each column of the schema. None is null."""
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._pending.append(pa.record_batch(arrays, schema=self._schema))
        if sum(batch.num_rows for batch in self._pending) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_batches(self._pending))
            self._pending.clear()

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


@dataclass(frozen=True)
class WrittenPassages:
    """Counts of written passages. positions: `position` of each passage. sources: source → number of passages."""

    positions: NDArray[np.int64]
    sources: Counter[str]
    words: int


def write_passages(path: Path, batches: Iterable[list[Candidate]], between: Callable[[], None]) -> WrittenPassages:
    """Write the passages, and return counts. between: called before each batch. If it raises, the work ends."""
    positions = [np.empty(0, np.int64)]
    sources: Counter[str] = Counter()
    words = 0
    with RowWriter(path, PASSAGES) as rows:
        for batch in batches:
            between()
            if not batch:
                continue
            passages = [candidate.passage for candidate in batch]
            ranks, scores = [candidate.rank for candidate in batch], [candidate.score for candidate in batch]
            rows.write(*zip(*passages, strict=True), ranks, scores)
            positions.append(np.array([candidate.position for candidate in batch], np.int64))
            sources.update(passage.source for passage in passages)
            words += sum(word_count(passage.text) for passage in passages)
    return WrittenPassages(np.concatenate(positions), sources, words)


def write_provenance(path: Path, retrieved: Retrieved | None, positions: NDArray[np.int64]) -> None:
    """Write the train rows that hit the passages at `positions` (sorted), by passage, rank and train row."""
    with RowWriter(path, PROVENANCE) as rows:
        if retrieved is None:
            return
        row_arrays = [np.array(query_rows, np.int64) for query_rows in retrieved.query_rows]
        for start in range(0, len(positions), _SLICE):
            part = positions[start : start + _SLICE]
            first = np.searchsorted(retrieved.hit_position, part[0], "left")
            end = np.searchsorted(retrieved.hit_position, part[-1], "right")
            hits = first + np.flatnonzero(np.isin(retrieved.hit_position[first:end], part))
            _write_hits(rows, retrieved, hits, row_arrays)


def _write_hits(
    rows: RowWriter, retrieved: Retrieved, hits: NDArray[np.int64], row_arrays: Sequence[NDArray[np.int64]]
) -> None:
    rows_of_hit = [row_arrays[query] for query in retrieved.hit_query[hits].tolist()]
    repeated = np.repeat(hits, [len(train_rows) for train_rows in rows_of_hit])
    train_rows = np.concatenate(rows_of_hit)
    position, rank = retrieved.hit_position[repeated], retrieved.hit_rank[repeated]
    order = np.lexsort((train_rows, rank, position))
    ids = retrieved.ids.take(pa.array(position[order]))
    rows.write(ids, train_rows[order], rank[order], retrieved.hit_score[repeated][order])


def write_leaks(path: Path, leaks: Sequence[tuple[str, Leak]]) -> None:
    """Write the leaks. leaks: (passage id, leak)."""
    with RowWriter(path, LEAKS) as rows:
        if leaks:
            rows.write(*zip(*((passage_id, *leak) for passage_id, leak in leaks), strict=True))
