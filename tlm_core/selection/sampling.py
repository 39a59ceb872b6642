"""Selectors that score every passage of the corpus instead of searching it, and the two random controls.

A `Scan` reads the corpus once and yields ids with scores. Scores do not depend on the order of the passages, so any
index that holds the same passages gives the same selection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tlm_core.corpus.passages import Passage
from tlm_core.selection.candidates import CandidateFilter, Ranked, with_texts
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.interface import Selected, SelectionInputs
from tlm_core.selection.retrieve import Progress

Scores = NDArray[np.float64]
Scan = Callable[[], Iterator[tuple[list[str], Scores]]]
"""Reads the corpus once and yields ids with their scores, in batches."""
Scorer = Callable[[Sequence[Passage]], Scores]

_MAX_IDS = 500_000  # ids in memory at once; a larger sample scans the corpus several times
_SHORT_PASSAGE = 25  # words; turns a budget in words into an upper bound on passages
_KEY_BITS = 53  # bits of the integers that a double represents exactly


def random_sample(inputs: SelectionInputs, accept: CandidateFilter) -> Selected:
    """Select a random sample: the control that ignores the task."""
    limit_to_hits(inputs, accept)
    return whole_corpus(inputs, accept)


def whole_corpus(inputs: SelectionInputs, accept: CandidateFilter) -> Selected:
    """Select every passage in random order."""
    return best_passages(inputs, accept, random_order(inputs.index, inputs.seed), scored=False)


def nothing(inputs: SelectionInputs, accept: CandidateFilter) -> Selected:  # noqa: ARG001
    """Select no passage."""
    return Selected(iter(()))


def limit_to_hits(inputs: SelectionInputs, accept: CandidateFilter) -> None:
    """Without a budget, limit the selection to as many passages as the queries would give.

    Raises EmptySelection if the queries give none.
    """
    if not inputs.params.has_budget:
        trial = CandidateFilter(accept.leak_filter)
        hits = with_texts(inputs.index, inputs.retrieve().ranked(), None)
        accept.max_passages = sum(len(batch) for batch in trial.batches(hits))
        inputs.check_any(accept.max_passages, trial)


def best_passages(inputs: SelectionInputs, accept: CandidateFilter, scan: Scan, *, scored: bool = True) -> Selected:
    """Select the passages with the highest scores. scored: whether the selection reports the scores."""
    count = inputs.index.count()
    if accept.max_passages is not None:
        count = min(count, accept.max_passages)
    if accept.max_words is not None:
        count = min(count, accept.max_words // _SHORT_PASSAGE + 1)
    ranked = rank_by_score(scan, count, scored=scored)
    return Selected(accept.batches(with_texts(inputs.index, ranked, count)))


def rank_by_score(scan: Scan, count: int, *, scored: bool) -> Iterator[Ranked]:
    """Rank all passages by decreasing score, then id. count: number of passages that the caller will likely read.

    Memory does not grow with the corpus, because each scan ranks only the next passages. The first scan ranks `count`
    passages, and some more to replace leaks. Each later scan ranks up to twice as many as the scan before it.
    """
    size = min(count + count // 8 + 8, _MAX_IDS)
    after: tuple[float, str] | None = None
    position = 0
    while True:
        ids, scores = _best(scan(), size, after)
        for name, score in zip(ids, scores.tolist(), strict=True):
            yield Ranked(position, name, position + 1, score if scored else None)
            position += 1
        if len(ids) < size:
            return
        after = (float(scores[-1]), ids[-1])
        size = min(2 * size, _MAX_IDS)


def _best(
    batches: Iterator[tuple[list[str], Scores]], size: int, after: tuple[float, str] | None
) -> tuple[list[str], Scores]:
    """Return ids and scores of the `size` passages that follow `after` (score, id) in the ranking; None: the first."""
    best_ids, best = pa.array([], pa.string()), np.empty(0)
    lowest = -np.inf
    pending: list[tuple[pa.Array, Scores]] = []
    count = 0
    for ids, scores in batches:
        eligible = scores >= lowest
        if after is not None:
            behind = np.fromiter((name > after[1] for name in ids), np.bool_, len(ids))
            eligible &= (scores < after[0]) | ((scores == after[0]) & behind)
        pending.append((pa.array(ids, pa.string()).filter(pa.array(eligible)), scores[eligible]))
        count += int(eligible.sum())
        if count > size:
            best_ids, best = _top([(best_ids, best), *pending], size)
            pending, count = [], 0
            lowest = best[-1] if len(best) == size else -np.inf
    best_ids, best = _top([(best_ids, best), *pending], size)
    return best_ids.to_pylist(), best


def _top(parts: Sequence[tuple[pa.Array, Scores]], size: int) -> tuple[pa.Array, Scores]:
    ids = pa.concat_arrays([part for part, _ in parts])
    scores = np.concatenate([part for _, part in parts])
    columns = pa.table({"score": scores, "id": ids})
    order = pc.sort_indices(columns, [("score", "descending"), ("id", "ascending")])[:size]
    return ids.take(order), scores[order.to_numpy()]


def random_order(index: PassageIndex, seed: int) -> Scan:
    """Return a scan whose scores depend only on `seed` and the id of the passage."""
    return lambda: ((ids, -uniform(ids, seed)) for ids in index.ids())


def uniform(ids: Sequence[str], seed: int) -> Scores:
    """A number in (0, 1) for each id, which depends on the id and `seed` only."""
    keys = [hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8] for name in ids]
    bits = np.frombuffer(b"".join(keys), dtype=">u8").astype(np.uint64) >> np.uint64(64 - _KEY_BITS)
    return (bits.astype(np.float64) + 0.5) / 2.0**_KEY_BITS


def scan_texts(index: PassageIndex, scorer: Scorer, progress: Progress) -> Scan:
    """Return a scan whose scores `scorer` computes from the passages, one batch at a time."""
    return lambda: (([passage.id for passage in batch], scorer(batch)) for batch in iterate_passages(index, progress))


def iterate_passages(index: PassageIndex, progress: Progress) -> Iterator[list[Passage]]:
    """Yield every passage of the index once, in batches, and report each batch to `progress`."""
    total, done = index.count(), 0
    for ids in index.ids():
        passages = index.fetch(ids)
        yield [passages[name] for name in ids]
        done += len(ids)
        progress(done, total, "passages")
