"""Candidate passages, and the filter that accepts or drops them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from tlm_core.corpus.leaks import Leak, LeakFilter
from tlm_core.corpus.passages import Passage, word_count
from tlm_core.selection.index import PassageIndex

_FETCH_SIZE = 1000


class Ranked(NamedTuple):
    """The id of a ranked passage. position: index in the ranking, from 0. rank: from 1. score: None if not reported."""

    position: int
    id: str
    rank: int
    score: float | None


class Candidate(NamedTuple):
    """A ranked passage with its text."""

    position: int
    rank: int
    score: float | None
    passage: Passage


@dataclass
class CandidateFilter:
    """Drops leaks, applies `admits` and the budget, and counts the dropped passages. The order does not change.

    leak_filter: None admits leaks. max_passages, max_words: the budget. admits: position of a passage → whether to
    accept the passage. The method `batches` sets the other fields. leaks: (passage id, leak) for each leak.
    leaking_passages: number of dropped passages with leaks. capped: number of passages that `admits` dropped.
    too_long: whether `batches` ended at a passage with more words than the budget had left.
    """

    leak_filter: LeakFilter | None
    max_passages: int | None = None
    max_words: int | None = None
    admits: Callable[[int], bool] | None = None
    leaks: list[tuple[str, Leak]] = field(default_factory=list)
    leaking_passages: int = 0
    capped: int = 0
    too_long: bool = False

    def batches(self, candidates: Iterable[list[Candidate]]) -> Iterator[list[Candidate]]:
        """Yield the accepted candidates of each batch, until the budget is spent."""
        passages, words = self.max_passages, self.max_words
        for batch in candidates:
            accepted: list[Candidate] = []
            for candidate in batch:
                if self._leaks(candidate.passage) or not self._admitted(candidate.position):
                    continue
                if words is not None:
                    words -= word_count(candidate.passage.text)
                    if words < 0:
                        self.too_long = True
                        break
                accepted.append(candidate)
                if passages is not None and len(accepted) >= passages:
                    break
            yield accepted
            if passages is not None:
                passages -= len(accepted)
            if passages == 0 or (words is not None and words <= 0):
                return

    def _leaks(self, passage: Passage) -> bool:
        leaks = self.leak_filter.leaks_of(passage.text) if self.leak_filter else []
        self.leaking_passages += bool(leaks)
        self.leaks.extend((passage.id, leak) for leak in leaks)
        return bool(leaks)

    def _admitted(self, position: int) -> bool:
        admitted = self.admits is None or self.admits(position)
        self.capped += not admitted
        return admitted


def with_texts(index: PassageIndex, ranked: Iterable[Ranked], budget: int | None) -> Iterator[list[Candidate]]:
    """Yield the passages of `ranked` with their texts, in batches of at most 1,000.

    budget: number of passages that the caller will likely accept; None: unknown. With a small budget, a batch has
    slightly more passages than the budget, to replace leaks.
    """
    pending = iter(ranked)
    size = _FETCH_SIZE if budget is None else min(_FETCH_SIZE, budget + budget // 8 + 8)
    while entries := list(islice(pending, size)):
        passages = index.fetch([entry.id for entry in entries])
        yield [Candidate(entry.position, entry.rank, entry.score, passages[entry.id]) for entry in entries]
