"""Which of the candidates stay: no leaks, no more than the budget, no query that brings in more than its cap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from tlm_core.corpus.leaks import Leak, LeakFilter
from tlm_core.corpus.passages import Passage, word_count
from tlm_core.selection.index import PassageIndex

_FETCH = 1000


class Ranked(NamedTuple):
    """A passage as a selector names it. place: among all it names, from 0; score: None where there is none."""

    place: int
    id: str
    rank: int
    score: float | None


class Candidate(NamedTuple):
    """The same, with its text."""

    place: int
    rank: int
    score: float | None
    passage: Passage


class FoundLeak(NamedTuple):
    """A passage that was dropped because it holds a validation or test text."""

    passage_id: str
    leak: Leak


@dataclass
class Keeper:
    """Passes candidates on in their order, while it filters and counts them.

    budget, words: the most that stay, as passages and as words. admits: asked by place for each that is no leak.
    After the run: leaks that the filter found, dropped (passages that it dropped), declined (by `admits`).
    """

    filter: LeakFilter | None
    budget: int | None = None
    words: int | None = None
    admits: Callable[[int], bool] | None = None
    leaks: list[FoundLeak] = field(default_factory=list)
    dropped: int = 0
    declined: int = 0

    def batches(self, candidates: Iterable[list[Candidate]]) -> Iterator[list[Candidate]]:
        """Those that stay, batch by batch; takes no further batch once the budget is spent."""
        passages, words = self.budget, self.words
        for batch in candidates:
            kept: list[Candidate] = []
            for candidate in batch:
                if self._leaks(candidate.passage) or not self._admitted(candidate.place):
                    continue
                if words is not None:
                    words -= word_count(candidate.passage.text)
                    if words < 0:
                        break
                kept.append(candidate)
                if passages is not None and len(kept) >= passages:
                    break
            yield kept
            if passages is not None:
                passages -= len(kept)
            if passages == 0 or (words is not None and words <= 0):
                return

    def _leaks(self, passage: Passage) -> bool:
        leaks = self.filter.leaks_of(passage.text) if self.filter else []
        self.dropped += bool(leaks)
        self.leaks.extend(FoundLeak(passage.id, leak) for leak in leaks)
        return bool(leaks)

    def _admitted(self, place: int) -> bool:
        admitted = self.admits is None or self.admits(place)
        self.declined += not admitted
        return admitted


def fetched(index: PassageIndex, ranked: Iterable[Ranked], budget: int | None) -> Iterator[list[Candidate]]:
    """`ranked` with their passages, fetched by the thousand.

    A budget of ten must not fetch a thousand texts; a few more than the budget make up for leaks.
    """
    pending = iter(ranked)
    size = _FETCH if budget is None else min(_FETCH, budget + budget // 8 + 8)
    while part := list(islice(pending, size)):
        passages = index.fetch([one.id for one in part])
        yield [Candidate(one.place, one.rank, one.score, passages[one.id]) for one in part]
