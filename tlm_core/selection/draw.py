"""Selectors that look at every passage of the corpus instead of asking queries: each passage has a worth, best first.

A pass over the corpus gives (ids, worths) batch by batch; worths do not depend on the order of the passages, so every
index with the same passages gives the same draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tlm_core.corpus.passages import Passage
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.keep import Ranked
from tlm_core.selection.retrieve import Progress

Pass = Callable[[], Iterator[tuple[list[str], NDArray[np.float64]]]]
"""Goes over the corpus once more and gives ids with their worths, in batches."""

_MOST = 500_000  # ids held at once: a bigger draw goes over the corpus several times
_KEY_BITS = 53  # whole numbers that a double holds exactly


def best_first(worths: Pass, count: int, *, scored: bool) -> Iterator[Ranked]:
    """All passages by falling worth, then id; `count` is how many will likely be taken.

    Memory does not grow with the corpus: after every `count` passages (and some for leaks) the corpus is gone over
    again for the next ones. scored: whether the worth is a score or only an order.
    """
    size = min(count + count // 8 + 8, _MOST)
    after: tuple[float, str] | None = None
    place = 0
    while True:
        names, values = _best(worths(), size, after)
        for name, value in zip(names, values.tolist(), strict=True):
            yield Ranked(place, name, place + 1, value if scored else None)
            place += 1
        if len(names) < size:
            return
        after = (float(values[-1]), names[-1])
        size = min(2 * size, _MOST)


def _best(
    batches: Iterator[tuple[list[str], NDArray[np.float64]]], size: int, after: tuple[float, str] | None
) -> tuple[list[str], NDArray[np.float64]]:
    """The `size` best of those that come behind `after`."""
    names, values = pa.array([], pa.string()), np.empty(0)
    lowest = -np.inf
    held: list[tuple[object, NDArray[np.float64]]] = []
    waiting = 0
    for ids, worths in batches:
        keep = worths >= lowest
        if after is not None:
            behind = np.fromiter((name > after[1] for name in ids), np.bool_, len(ids))
            keep &= (worths < after[0]) | ((worths == after[0]) & behind)
        held.append((pa.array(ids, pa.string()).filter(pa.array(keep)), worths[keep]))
        waiting += int(keep.sum())
        if waiting > size:
            names, values = _cut([(names, values), *held], size)
            held, waiting = [], 0
            lowest = values[-1] if len(values) == size else -np.inf
    names, values = _cut([(names, values), *held], size)
    return names.to_pylist(), values


def _cut(parts: Sequence[tuple[object, NDArray[np.float64]]], size: int) -> tuple[pa.Array, NDArray[np.float64]]:
    names = pa.concat_arrays([part for part, _ in parts])
    values = np.concatenate([part for _, part in parts])
    order = pc.sort_indices(pa.table({"v": values, "n": names}), [("v", "descending"), ("n", "ascending")])[:size]
    return names.take(order), values[order.to_numpy()]


def shuffled(index: PassageIndex, seed: int) -> Pass:
    """Worths that only `seed` and the passage's id decide."""

    def go() -> Iterator[tuple[list[str], NDArray[np.float64]]]:
        for ids in index.ids():
            yield ids, -uniform(ids, seed)

    return go


def uniform(ids: Sequence[str], seed: int) -> NDArray[np.float64]:
    """A number in (0, 1) for each id, which only the id and `seed` decide."""
    keys = [hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8] for name in ids]
    bits = np.frombuffer(b"".join(keys), dtype=">u8").astype(np.uint64) >> np.uint64(64 - _KEY_BITS)
    return (bits.astype(np.float64) + 0.5) / 2.0**_KEY_BITS


def over_texts(
    index: PassageIndex, worth: Callable[[Sequence[Passage]], NDArray[np.float64]], progress: Progress
) -> Pass:
    """Worths that `worth` gives to batches of passages."""

    def go() -> Iterator[tuple[list[str], NDArray[np.float64]]]:
        for batch in passages_of(index, progress):
            yield [passage.id for passage in batch], worth(batch)

    return go


def passages_of(index: PassageIndex, progress: Progress) -> Iterator[list[Passage]]:
    """Every passage of the index once, in batches; `progress` is told how many were given."""
    total, done = index.count(), 0
    for ids in index.ids():
        found = index.fetch(ids)
        yield [found[name] for name in ids]
        done += len(ids)
        progress(done, total, "passages")
