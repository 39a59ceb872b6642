"""From train texts to the passages that they ask for: batched queries, union by best rank, provenance."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlm_core.selection.index import PassageIndex

BATCH = 128

Progress = Callable[[int, int], None]
"""Told how many train rows of how many are done. What it raises ends the work."""


def unwatched(done: int, total: int) -> None:
    """The progress of work that nobody watches."""


@dataclass(frozen=True)
class Query:
    """A text to search with and the train rows that it is the text of."""

    text: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Retrieved:
    """The union of all queries' hits; n passages, m pairs of a passage and a train row that asked for it.

    ids: [n] by best rank, then id. rank, score: [n] the best rank of each (1 is best) and its score there, the
    highest if several rows gave that rank. asked_passage (index into ids), asked_row, asked_rank, asked_score: [m]
    by passage, rank, row. queries: train rows in all. without_hit: the train rows that found nothing.
    """

    ids: list[str]
    rank: NDArray[np.int32]
    score: NDArray[np.float32]
    asked_passage: NDArray[np.int32]
    asked_row: NDArray[np.int64]
    asked_rank: NDArray[np.int32]
    asked_score: NDArray[np.float32]
    queries: int
    without_hit: list[int]


def queries_of(texts: Iterable[tuple[int, str]]) -> list[Query]:
    """One query for each distinct text of (row, text), in order of first sight: equal texts are searched once."""
    rows: dict[str, list[int]] = {}
    for row, text in texts:
        rows.setdefault(text, []).append(row)
    return [Query(text, tuple(numbers)) for text, numbers in rows.items()]


def retrieve(queries: Sequence[Query], index: PassageIndex, top_k: int, progress: Progress) -> Retrieved:
    """The union of the `top_k` best passages of every query (paper section 3.1)."""
    numbers: dict[str, int] = {}
    passages, rows, ranks, scores = array("i"), array("q"), array("i"), array("f")
    without_hit: list[int] = []
    total = sum(len(query.rows) for query in queries)
    done = 0
    for start in range(0, len(queries), BATCH):
        batch = queries[start : start + BATCH]
        for query, hits in zip(batch, index.search([query.text for query in batch], top_k), strict=True):
            for rank, hit in enumerate(hits, start=1):
                number = numbers.setdefault(hit.id, len(numbers))
                for row in query.rows:
                    passages.append(number)
                    rows.append(row)
                    ranks.append(rank)
                    scores.append(hit.score)
            if not hits:
                without_hit.extend(query.rows)
            done += len(query.rows)
        progress(done, total)
    return _united(
        list(numbers),
        np.asarray(passages, np.int32),
        np.asarray(rows, np.int64),
        np.asarray(ranks, np.int32),
        np.asarray(scores, np.float32),
        queries=total,
        without_hit=sorted(without_hit),
    )


def _united(
    names: list[str],
    passages: NDArray[np.int32],
    rows: NDArray[np.int64],
    ranks: NDArray[np.int32],
    scores: NDArray[np.float32],
    *,
    queries: int,
    without_hit: list[int],
) -> Retrieved:
    """Order passages by best rank and id, and the pairs by passage, rank and row."""
    by_passage = np.lexsort((-scores, ranks, passages))
    firsts = by_passage[np.unique(passages[by_passage], return_index=True)[1]]
    best_rank, best_score = ranks[firsts], scores[firsts]
    order = sorted(range(len(names)), key=lambda number: (int(best_rank[number]), names[number]))
    position = np.empty(len(names), np.int32)
    position[order] = np.arange(len(names), dtype=np.int32)
    place = position[passages]
    pairs = np.lexsort((rows, ranks, place))
    return Retrieved(
        ids=[names[number] for number in order],
        rank=best_rank[order],
        score=best_score[order],
        asked_passage=place[pairs],
        asked_row=rows[pairs],
        asked_rank=ranks[pairs],
        asked_score=scores[pairs],
        queries=queries,
        without_hit=without_hit,
    )
