"""The port behind which passages are indexed and found, and what both of its adapters share.

Semantics, the same for every adapter: a query is a bag of terms, any of which may match; a term that stands n times
in the query counts n times. Scores are BM25 with k1 = 1.2 and b = 0.75 in Lucene's form without the constant factor
k1 + 1, idf = ln(1 + (N - n + 1/2) / (n + 1/2)) over the whole index, lengths rounded to Lucene's one byte. Ties go to
the smaller passage id. What the terms of a text are stands in `analysis`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from tlm_core.corpus.passages import Passage

K1 = 1.2
B = 0.75
MAX_TERMS = 1024  # clauses that a search engine takes by default; longer queries keep their best terms
_ONE_SCORE = 1 - 1e-6  # single precision and the order of its sums blur scores by some parts in ten million


class Hit(NamedTuple):
    """A passage that matches a query."""

    id: str
    score: float


class PassageIndex(Protocol):
    """Passages that can be searched. Written once: `add` any number of times, `commit`, then read; thread-safe then.

    Raises IndexUnavailable when it does not answer, IndexMismatch when it is not what it should be, StorageFull.
    """

    def add(self, batch: Sequence[Passage]) -> None:
        """Take passages in. An id that is there already changes nothing."""
        ...

    def commit(self, expected: int | None = None) -> None:
        """Make what was added searchable and close the index for adding.

        Raises IndexMismatch, and leaves the index unusable for searches, if it does not hold `expected` passages.
        """
        ...

    def count(self) -> int:
        """Passages in the index."""
        ...

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """For each query the best `k` passages, best first; fewer if fewer share a term with it."""
        ...

    def fetch(self, ids: Collection[str]) -> dict[str, Passage]:
        """The passages of `ids`. Raises NotFound if one is not in the index."""
        ...

    def ids(self) -> Iterator[list[str]]:
        """Every id once, in batches, in an order that stays the same."""
        ...

    def close(self) -> None:
        """Let go of files, threads and connections."""
        ...


def ranked(hits: Sequence[Hit], k: int) -> list[Hit]:
    """The first `k` of `hits` by falling score, then id. Scores within one part in a million are one score."""
    ordered = sorted(hits, key=lambda hit: -hit.score)
    result: list[Hit] = []
    start = 0
    while start < len(ordered) and len(result) < k:
        score = ordered[start].score
        end = start + 1
        while end < len(ordered) and ordered[end].score >= score * _ONE_SCORE:
            end += 1
        result.extend(Hit(name, score) for name in sorted(hit.id for hit in ordered[start:end]))
        start = end
    return result[:k]


def tie_at_cut(falling_scores: Sequence[float], k: int) -> bool:
    """Whether the tie that holds rank `k` reaches the end of `falling_scores`, so that more may belong to it."""
    return len(falling_scores) > k and falling_scores[-1] >= falling_scores[k - 1] * _ONE_SCORE


def best_terms(counts: Mapping[str, int], passages_with: Callable[[str], int], total: int) -> dict[str, int]:
    """The MAX_TERMS terms that can add most to a score: by count in the query times idf, then alphabetically.

    counts: term → times in the query. passages_with: how many of the `total` passages hold a term.
    """
    weights = {}
    for term, count in counts.items():
        holding = passages_with(term)
        if holding:
            weights[term] = count * math.log1p((total - holding + 0.5) / (holding + 0.5))
    kept = sorted(weights, key=lambda term: (-weights[term], term))[:MAX_TERMS]
    return {term: counts[term] for term in sorted(kept)}
