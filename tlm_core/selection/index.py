"""The interface of a passage index, and the ranking rules that its implementations share.

A query is a bag of terms. A passage matches a query if they share a term. A term that occurs twice in the query counts
twice. `text_analysis` defines the terms of a text.

Scores are BM25 in Lucene's form, without the constant factor k1 + 1. k1 is 1.2 and b is 0.75. For a term in n of the N
passages of the index, idf = ln(1 + (N - n + 1/2) / (n + 1/2)). A text's length is rounded to one byte, as in Lucene.
Ties are sorted by passage id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from tlm_core.corpus.passages import Passage

K1 = 1.2
B = 0.75
MAX_TERMS = 1024  # the default limit of search engines on clauses; longer queries use their best terms
_EQUAL = 1 - 1e-6  # rounding in single precision changes scores by less than one part in a million


class Hit(NamedTuple):
    """A passage that matches a query, with its score."""

    id: str
    score: float


class PassageIndex(Protocol):
    """A searchable index of passages. Call `add` any number of times, then `commit`, then read. Reads are thread-safe.

    The methods raise IndexUnavailable if the index does not answer, IndexMismatch if its content is wrong, StorageFull,
    and Conflict for a call out of this order.
    """

    def add(self, batch: Sequence[Passage]) -> None:
        """Add passages. A passage has no effect if a passage with the same id was added before."""
        ...

    def commit(self, expected: int | None = None) -> None:
        """Make the passages searchable. The index then accepts no more passages.

        Raises IndexMismatch if the index does not contain `expected` passages. The index is then unusable.
        """
        ...

    def count(self) -> int:
        """Return the number of passages."""
        ...

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return the hits of each query, best first: up to `k` passages that share a term with the query."""
        ...

    def fetch(self, ids: Collection[str]) -> dict[str, Passage]:
        """Return the passages of `ids`. Raises NotFound if an id is not in the index."""
        ...

    def ids(self) -> Iterator[list[str]]:
        """Yield every id once, in batches. The order is always the same."""
        ...

    def close(self) -> None:
        """Release files, threads and connections."""
        ...


def ranked(hits: Sequence[Hit], k: int) -> list[Hit]:
    """Return the best `k` hits by decreasing score, then id. Scores within one part in a million count as equal."""
    ordered = sorted(hits, key=lambda hit: -hit.score)
    result: list[Hit] = []
    start = 0
    while start < len(ordered) and len(result) < k:
        score = ordered[start].score
        end = start + 1
        while end < len(ordered) and ordered[end].score >= score * _EQUAL:
            end += 1
        result.extend(Hit(name, score) for name in sorted(hit.id for hit in ordered[start:end]))
        start = end
    return result[:k]


def tie_at_cut(scores: Sequence[float], k: int) -> bool:
    """Return whether more than `k` sorted scores end with a score equal to the k-th. Then hits beyond may tie too."""
    return len(scores) > k and scores[-1] >= scores[k - 1] * _EQUAL


def best_terms(counts: Mapping[str, int], passages_with: Callable[[str], int], total: int) -> dict[str, int]:
    """Return term → count for the MAX_TERMS terms with the highest count times idf. Ties are in alphabetical order.

    counts: term → occurrences in the query. passages_with: returns how many of the `total` passages contain a term.
    """
    weights = {}
    for term, count in counts.items():
        if passages := passages_with(term):
            weights[term] = count * math.log1p((total - passages + 0.5) / (passages + 0.5))
    best = sorted(weights, key=lambda term: (-weights[term], term))[:MAX_TERMS]
    return {term: counts[term] for term in sorted(best)}
