"""Which of the ranked passages stay: no leaks, no more than the budget; and the random control's candidates."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from tlm_core.corpus.leaks import Leak, LeakFilter
from tlm_core.corpus.passages import Passage
from tlm_core.selection.index import PassageIndex

_FETCH = 1000


class FoundLeak(NamedTuple):
    """A passage that was dropped because it holds a validation or test text."""

    passage_id: str
    leak: Leak


@dataclass
class Keeper:
    """Passes candidates on in their order, while it fetches, filters and counts them.

    leaks: what the filter found so far. dropped: passages that it dropped.
    """

    index: PassageIndex
    filter: LeakFilter | None
    budget: int | None
    leaks: list[FoundLeak] = field(default_factory=list)
    dropped: int = 0

    def batches(self, candidates: Iterable[str]) -> Iterator[list[tuple[int, Passage]]]:
        """(position among the candidates, passage) of those that stay, in batches of at most 1,000."""
        left = self.budget
        pending = enumerate(candidates)
        while left is None or left > 0:
            # A budget of ten must not fetch a thousand texts; a few more than the budget make up for leaks.
            part = list(islice(pending, _FETCH if left is None else min(_FETCH, left + left // 8 + 8)))
            if not part:
                return
            passages = self.index.fetch([name for _, name in part])
            stay = self._without_leaks((position, passages[name]) for position, name in part)
            batch = list(islice(stay, left))
            if left is not None:
                left -= len(batch)
            yield batch

    def _without_leaks(self, found: Iterable[tuple[int, Passage]]) -> Iterator[tuple[int, Passage]]:
        for position, passage in found:
            leaks = self.filter.leaks_of(passage.text) if self.filter else []
            if leaks:
                self.dropped += 1
                self.leaks.extend(FoundLeak(passage.id, leak) for leak in leaks)
            else:
                yield position, passage


def random_order(index: PassageIndex, seed: int, count: int) -> Iterator[str]:
    """All ids of the index in an order that only `seed` decides; `count` is how many will likely be taken.

    The order is that of the SHA-256 of seed and id, so it is the same for every index with the same passages.
    """
    taken = 0
    size = max(count + count // 8 + 8, 1)
    total = index.count()
    while taken < total:
        first: Sequence[tuple[bytes, str]] = heapq.nsmallest(size, _keyed(index, seed))
        yield from (name for _, name in first[taken:])
        taken = len(first)
        size *= 2


def _keyed(index: PassageIndex, seed: int) -> Iterator[tuple[bytes, str]]:
    for batch in index.ids():
        for name in batch:
            yield hashlib.sha256(f"{seed}\0{name}".encode()).digest(), name
