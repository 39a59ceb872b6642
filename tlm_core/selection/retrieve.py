"""From queries to the passages that they ask for: searched in parts that survive a restart, united by best rank."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tlm_core.parquet import open_parquet
from tlm_core.selection.index import Hit, PassageIndex
from tlm_core.selection.keep import Ranked
from tlm_core.selection.queries import Queries, Query

BATCH = 512
PART = 2 * BATCH  # queries whose hits are one file: what a death in the middle costs at most
_HITS = pa.schema([("query", pa.int32()), ("id", pa.string()), ("rank", pa.int32()), ("score", pa.float32())])
_SLICE = 10_000
_LOW = np.uint64(2**32 - 1)

Progress = Callable[[int, int, str], None]
"""Told how many of how many are done, and of what: `queries` (train rows) or `passages` (of a pass over the corpus).
What it raises ends the work."""


def unwatched(done: int, total: int, unit: str) -> None:
    """The progress of work that nobody watches."""


@dataclass(frozen=True)
class Retrieved:
    """The union of all queries' hits; n passages, m pairs of a passage and a query that asked for it.

    asked_by: the train rows of each query. ids: [n] (Arrow strings) by best rank, then id. rank, score: [n] the best
    rank of each (1 is best) and its score there, the highest if several queries gave that rank. hit_place (index into
    ids), hit_query (index into asked_by), hit_rank, hit_score: [m] by place, rank, query. rows: train rows that asked.
    without_hit: those of them that found nothing.
    """

    asked_by: Sequence[tuple[int, ...]]
    ids: Any
    rank: NDArray[np.int32]
    score: NDArray[np.float32]
    hit_place: NDArray[np.int32]
    hit_query: NDArray[np.int32]
    hit_rank: NDArray[np.int32]
    hit_score: NDArray[np.float32]
    rows: int
    without_hit: list[int]

    def ranked(self, places: NDArray[np.int64] | None = None) -> Iterator[Ranked]:
        """The passages at `places`, in that order; all of them if None."""
        wanted = np.arange(len(self.ids)) if places is None else places
        for start in range(0, len(wanted), _SLICE):
            part = wanted[start : start + _SLICE]
            names = self.ids.take(pa.array(part)).to_pylist()
            ranks, scores = self.rank[part].tolist(), self.score[part].tolist()
            yield from map(Ranked, part.tolist(), names, ranks, scores)


def retrieve(
    queries: Queries, index: PassageIndex, top_k: int, folder: Path, progress: Progress = unwatched
) -> Retrieved:
    """The union of the `top_k` best passages of every query (paper section 3.1).

    folder: takes the hits part by part; parts that an earlier try with the same arguments left there are not
    searched again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = [0, *accumulate(map(len, queries.rows))]  # train rows, by how many queries they are the text of
    total, paths = asked[-1], []
    for start in range(0, len(queries), PART):
        path = folder / f"hits-{start // PART:05d}.parquet"
        if not _whole(path):

            def told(queries_done: int, start: int = start) -> None:
                progress(asked[start + queries_done], total, "queries")

            _write_part(path, start, list(_searched(queries[start : start + PART], index, top_k, told)))
        paths.append(path)
    progress(total, total, "queries")
    return _united(queries.rows, paths, total)


def _searched(
    queries: Sequence[Query], index: PassageIndex, top_k: int, told: Callable[[int], None]
) -> Iterator[list[Hit]]:
    for start in range(0, len(queries), BATCH):
        told(start)
        yield from index.search([query.text for query in queries[start : start + BATCH]], top_k)


def _write_part(path: Path, first: int, found: Sequence[Sequence[Hit]]) -> None:
    counts = [len(hits) for hits in found]
    columns = (
        np.repeat(np.arange(first, first + len(found), dtype=np.int32), counts),
        [hit.id for hits in found for hit in hits],
        [rank for hits in found for rank in range(1, len(hits) + 1)],
        [hit.score for hits in found for hit in hits],
    )
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _HITS, strict=True)]
    partial = path.with_suffix(".part")
    with open(partial, "wb") as handle:
        pq.write_table(pa.table(arrays, schema=_HITS), handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)


def _whole(path: Path) -> bool:
    try:
        with pq.ParquetFile(path) as file:
            return bool(file.schema_arrow.equals(_HITS))
    except (OSError, pa.ArrowException):
        return False


def _united(asked_by: Sequence[tuple[int, ...]], paths: Sequence[Path], rows: int) -> Retrieved:
    """Unite the parts. A big task has millions of hits, so ids are held once and everything else as plain numbers."""
    query, rank, score, passage, names = _numbered(paths)
    # Rank first, then falling score: of numbers that are not negative the bits order as the numbers do.
    worth = rank.astype(np.uint64)
    worth <<= np.uint64(32)
    worth |= _LOW - score.view(np.uint32)
    best = np.full(len(names), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(best, passage, worth)
    del worth
    best_rank = (best >> np.uint64(32)).astype(np.int32)
    best_score = (_LOW - (best & _LOW)).astype(np.uint32).view(np.float32)
    by = pc.sort_indices(pa.table({"rank": best_rank, "id": names}), [("rank", "ascending"), ("id", "ascending")])
    order = by.to_numpy().astype(np.int64)
    place = np.empty(len(names), np.int32)
    place[order] = np.arange(len(names), dtype=np.int32)
    passage = place[passage]
    asked = np.zeros(len(asked_by), np.bool_)
    asked[query] = True
    # Hits come by query, which a stable sort keeps within a passage and rank.
    key = passage.astype(np.int64)
    key <<= 32
    key |= rank
    hits = np.argsort(key, kind="stable")
    del key
    return Retrieved(
        asked_by=asked_by,
        ids=names.take(by),
        rank=best_rank[order],
        score=best_score[order],
        hit_place=passage[hits],
        hit_query=query[hits],
        hit_rank=rank[hits],
        hit_score=score[hits],
        rows=rows,
        without_hit=sorted(row for number in np.flatnonzero(~asked).tolist() for row in asked_by[number]),
    )


def _numbered(
    paths: Sequence[Path],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int32], Any]:
    """Query, rank, score and passage number of every hit, and the ids by passage number.

    Ids are told apart by 64 bits of a hash: among ten million the chance that any two share them is 1 in 300,000.
    Numbered part by part, since to number all hits at once takes several times their size.
    """
    total = sum(pq.read_metadata(path).num_rows for path in paths)
    query, rank = np.empty(total, np.int32), np.empty(total, np.int32)
    score, passage = np.empty(total, np.float32), np.empty(total, np.int32)
    keys, filled = np.empty(total, np.uint64), 0
    for path in paths:
        part = _read(path)
        here = slice(filled, filled + len(part))
        query[here], rank[here], score[here] = (part[name].to_numpy() for name in ("query", "rank", "score"))
        keys[here] = _keys(part["id"])
        filled = here.stop
    known = np.unique(keys)
    unseen, filled = np.ones(len(known), np.bool_), 0
    numbers, names = [np.empty(0, np.int64)], [pa.array([], pa.string())]  # of passages as they first appear
    for path in paths:
        ids = _read(path, ["id"])["id"].combine_chunks()
        here = slice(filled, filled + len(ids))
        passage[here] = found = np.searchsorted(known, keys[here])
        filled = here.stop
        new, first = np.unique(found, return_index=True)
        new, first = new[unseen[new]], first[unseen[new]]
        unseen[new] = False
        numbers.append(new)
        names.append(ids.take(pa.array(first)))
    pa.default_memory_pool().release_unused()  # what decoding took
    by_number = np.argsort(np.concatenate(numbers))
    return query, rank, score, passage, pa.concat_arrays(names).take(pa.array(by_number))


def _read(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A part's table, by this thread alone: each thread of a pool keeps memory of its own."""
    with open_parquet(path) as file:
        return file.read(columns, use_threads=False)


def _keys(ids: Any) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids.to_pylist())
    return np.frombuffer(b"".join(digests), np.uint64)
