"""The Parquet files of a selection: the same rows give the same bytes, and few rows are held at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tlm_core.selection.keep import FoundLeak
from tlm_core.selection.retrieve import Retrieved

PASSAGES = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("rank", pa.int32()), ("score", pa.float32())]
)
PROVENANCE = pa.schema(
    [("passage_id", pa.string()), ("train_row", pa.int64()), ("rank", pa.int32()), ("score", pa.float32())]
)
LEAKS = pa.schema([("passage_id", pa.string()), ("split", pa.string()), ("row", pa.int64()), ("rule", pa.string())])
_ROWS = 20_000
_PASSAGES = 2_000


class Rows:
    """A Parquet file written column batch by column batch, in row groups of even size and without a time in it."""

    def __init__(self, path: Path, schema: Any) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending: list[Any] = []

    def __enter__(self) -> Rows:
        return self

    def write(self, *columns: Any) -> None:
        """Append rows; one sequence for each column of the schema, None for null."""
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._pending.append(pa.record_batch(arrays, schema=self._schema))
        if sum(batch.num_rows for batch in self._pending) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_batches(self._pending))
            self._pending.clear()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


def write_provenance(path: Path, found: Retrieved | None, kept: NDArray[np.int64]) -> None:
    """Who asked for each passage at the places `kept`: by passage, rank, train row."""
    with Rows(path, PROVENANCE) as rows:
        if found is None:
            return
        row_lists = [np.array(one, np.int64) for one in found.asked_by]
        for start in range(0, len(kept), _PASSAGES):
            part = kept[start : start + _PASSAGES]
            lefts, rights = (np.searchsorted(found.hit_place, part, side=side) for side in ("left", "right"))
            lengths = rights - lefts
            within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            _write_hits(rows, found, np.repeat(lefts, lengths) + within, row_lists)


def _write_hits(rows: Rows, found: Retrieved, hits: NDArray[np.int64], row_lists: Sequence[NDArray[np.int64]]) -> None:
    asked = [row_lists[query] for query in found.hit_query[hits].tolist()]
    each = np.repeat(hits, [len(one) for one in asked])
    train_rows = np.concatenate(asked)
    place, rank, score = found.hit_place[each], found.hit_rank[each], found.hit_score[each]
    order = np.lexsort((train_rows, rank, place))
    names = found.ids.take(pa.array(place[order]))
    rows.write(names, train_rows[order], rank[order], score[order])


def write_leaks(path: Path, leaks: Sequence[FoundLeak]) -> None:
    with Rows(path, LEAKS) as rows:
        if leaks:
            rows.write(*zip(*((found.passage_id, *found.leak) for found in leaks), strict=True))
