"""Search the index with all queries, and unite the hits by best rank. An interrupted search can resume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tlm_core.artifacts.faults import synced
from tlm_core.parquet import open_parquet
from tlm_core.selection.candidates import Ranked
from tlm_core.selection.index import Hit, PassageIndex
from tlm_core.selection.queries import Queries
from tlm_core.tasks.task import Task

BATCH = 512
PART = 2 * BATCH  # queries whose hits are in one file; an interruption loses the hits of at most this many queries
HITS = 1_000 * BATCH  # limit on the hits of one search; a large `top_k` reduces the number of queries in a search
_HITS = pa.schema([("query", pa.int32()), ("id", pa.string()), ("rank", pa.int32()), ("score", pa.float32())])
_SLICE = 10_000
_LOW_BITS = np.uint64(2**32 - 1)

Positions = NDArray[np.int64]

Progress = Callable[[int, int, str], None]
"""Receives the done and total numbers and their unit: `queries` (counts train rows) or `passages` (of a corpus scan).
If this function raises an exception, the work ends."""


@dataclass(frozen=True)
class Retrieved:
    """The union of the hits of all queries: n passages, m hits (pairs of a passage and a query).

    query_rows: the train rows of each query. train_rows: number of train rows.
    rows_without_hit: the train rows whose queries have no hit.
    ids, rank, score: [n], sorted by best rank, then id. rank is the best rank of a passage, from 1. score is the
    highest score of the passage at this rank.
    hit_position, hit_query, hit_rank, hit_score: [m], sorted by position, rank, then query. hit_position is an index
    into ids, and hit_query is an index into query_rows.
    """

    query_rows: Sequence[tuple[int, ...]]
    train_rows: int
    rows_without_hit: list[int]
    ids: pa.Array
    rank: NDArray[np.int32]
    score: NDArray[np.float32]
    hit_position: NDArray[np.int32]
    hit_query: NDArray[np.int32]
    hit_rank: NDArray[np.int32]
    hit_score: NDArray[np.float32]

    def ranked(self, positions: NDArray[np.int64] | None = None) -> Iterator[Ranked]:
        """Yield the passages at `positions` (indices into `ids`), in the order of `positions`. None: all passages."""
        wanted = np.arange(len(self.ids)) if positions is None else positions
        for start in range(0, len(wanted), _SLICE):
            part = wanted[start : start + _SLICE]
            ids = self.ids.take(pa.array(part)).to_pylist()
            yield from map(Ranked, part.tolist(), ids, self.rank[part].tolist(), self.score[part].tolist())


def retrieve(queries: Queries, index: PassageIndex, top_k: int, folder: Path, progress: Progress) -> Retrieved:
    """Return the union of the `top_k` best passages of every query (paper section 3.1).

    folder: receives files with the hits of up to PART queries each. A later call with equal arguments reuses the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows_before = [0, *accumulate(map(len, queries.rows))]  # train rows of all earlier queries
    at_once = min(BATCH, HITS // top_k)
    total, paths, part = rows_before[-1], [], at_once * PART // BATCH
    for start in range(0, len(queries.rows), part):
        path = folder / f"hits-{start // part:05d}.parquet"
        if not _is_complete(path):
            hits: list[list[Hit]] = []
            for first in range(start, min(start + part, len(queries.rows)), at_once):
                progress(rows_before[first], total, "queries")
                hits.extend(index.search(queries.texts(first, first + at_once), top_k))
            _write_part(path, start, hits)
        paths.append(path)
    progress(total, total, "queries")
    return _united(queries.rows, paths, total)


def _write_part(path: Path, first: int, hits_of_queries: Sequence[Sequence[Hit]]) -> None:
    counts = [len(hits) for hits in hits_of_queries]
    columns = (
        np.repeat(np.arange(first, first + len(counts), dtype=np.int32), counts),
        [hit.id for hits in hits_of_queries for hit in hits],
        [rank for hits in hits_of_queries for rank in range(1, len(hits) + 1)],
        [hit.score for hits in hits_of_queries for hit in hits],
    )
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _HITS, strict=True)]
    with synced(path) as handle:
        pq.write_table(pa.table(arrays, schema=_HITS), handle)


def _is_complete(path: Path) -> bool:
    try:
        with pq.ParquetFile(path) as file:
            return bool(file.schema_arrow.equals(_HITS))
    except (OSError, pa.ArrowException):
        return False


def _united(query_rows: Sequence[tuple[int, ...]], paths: Sequence[Path], train_rows: int) -> Retrieved:
    """Return the union of the hits in `paths`. A large task has millions of hits, so memory holds each id only once."""
    query, rank, score, passage, ids = _numbered(paths)
    # Sort by rank, then by decreasing score. The bits of non-negative floats sort like the floats.
    key = rank.astype(np.uint64)
    key <<= np.uint64(32)
    key |= _LOW_BITS - score.view(np.uint32)
    best = np.full(len(ids), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(best, passage, key)
    del key
    best_rank = (best >> np.uint64(32)).astype(np.int32)
    best_score = (_LOW_BITS - (best & _LOW_BITS)).astype(np.uint32).view(np.float32)
    by_rank = pc.sort_indices(pa.table({"rank": best_rank, "id": ids}), [("rank", "ascending"), ("id", "ascending")])
    order = by_rank.to_numpy().astype(np.int64)
    position = np.empty(len(ids), np.int32)
    position[order] = np.arange(len(ids), dtype=np.int32)
    hit_position = position[passage]
    # The hits are sorted by query. A stable sort preserves this order within a passage and rank.
    hit_key = hit_position.astype(np.int64)
    hit_key <<= 32
    hit_key |= rank
    hits = np.argsort(hit_key, kind="stable")
    del hit_key
    has_hit = np.zeros(len(query_rows), np.bool_)
    has_hit[query] = True
    return Retrieved(
        query_rows=query_rows,
        train_rows=train_rows,
        rows_without_hit=sorted(row for number in np.flatnonzero(~has_hit).tolist() for row in query_rows[number]),
        ids=ids.take(by_rank),
        rank=best_rank[order],
        score=best_score[order],
        hit_position=hit_position[hits],
        hit_query=query[hits],
        hit_rank=rank[hits],
        hit_score=score[hits],
    )


def _numbered(
    paths: Sequence[Path],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int32], pa.Array]:
    """Return four arrays [hits], namely query, rank, score and passage number, and the id of each passage number.

    Ids are compared by a 64-bit hash. Among ten million ids, the probability of a collision is 1 in 300,000. The
    function reads one file at a time, because numbering all hits at once needs several times their size in memory.
    """
    total = sum(pq.read_metadata(path).num_rows for path in paths)
    query, rank = np.empty(total, np.int32), np.empty(total, np.int32)
    score, passage = np.empty(total, np.float32), np.empty(total, np.int32)
    keys, filled = np.empty(total, np.uint64), 0
    for path in paths:
        part = _read(path)
        rows = slice(filled, filled + len(part))
        query[rows], rank[rows], score[rows] = (part[name].to_numpy() for name in ("query", "rank", "score"))
        keys[rows] = _keys(part["id"])
        filled = rows.stop
    distinct = np.unique(keys)
    is_new, filled = np.ones(len(distinct), np.bool_), 0
    numbers, names = [np.empty(0, np.int64)], [pa.array([], pa.string())]  # of passages by first occurrence
    for path in paths:
        ids = _read(path, ["id"])["id"].combine_chunks()
        rows = slice(filled, filled + len(ids))
        passage[rows] = part_numbers = np.searchsorted(distinct, keys[rows])
        filled = rows.stop
        candidates, first = np.unique(part_numbers, return_index=True)
        new = is_new[candidates]
        is_new[candidates] = False
        numbers.append(candidates[new])
        names.append(ids.take(pa.array(first[new])))
    pa.default_memory_pool().release_unused()  # memory of the decoder
    by_number = np.argsort(np.concatenate(numbers))
    return query, rank, score, passage, pa.concat_arrays(names).take(pa.array(by_number))


def _read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file of hits in the calling thread, because each thread of a pool would retain memory."""
    with open_parquet(path) as file:
        return file.read(columns, use_threads=False)


def _keys(ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids.to_pylist())
    return np.frombuffer(b"".join(digests), np.uint64)


def hits_by_label(retrieved: Retrieved, task: Task) -> Iterator[tuple[Positions, NDArray[np.int32]]]:
    """Yield for each label the sorted positions and the best ranks of the passages that its train rows retrieved."""
    label_of_row = dict(zip(task.rows("train").tolist(), task.label_ids("train").tolist(), strict=True))
    labels_of_query = [{label_of_row[row] for row in rows} for rows in retrieved.query_rows]
    for label in range(len(task.labels)):
        queries = np.array([label in labels for labels in labels_of_query], np.bool_)
        hits = np.flatnonzero(queries[retrieved.hit_query]) if len(queries) else np.empty(0, np.int64)
        # Hits are sorted by position, then rank. So the first hit of each position has the best rank.
        positions, first = np.unique(retrieved.hit_position[hits], return_index=True)
        yield positions.astype(np.int64), retrieved.hit_rank[hits][first]
