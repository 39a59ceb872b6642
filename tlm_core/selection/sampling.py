"""The selectors `random`, `whole` and `none`, and functions that rank every passage of a corpus by a score.

A `Scan` reads the corpus once and yields batches of passage ids with scores. Scores do not depend on the order of the
passages. So all indexes with the same passages give the same selection.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tlm_core.corpus.passages import Passage
from tlm_core.selection.candidates import CandidateFilter, Ranked, with_texts
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.interface import Selected, SelectionInputs
from tlm_core.selection.retrieve import Progress

Scores = NDArray[np.float64]
Scan = Callable[[], Iterator[tuple[list[str], Scores]]]
Scorer = Callable[[Sequence[Passage]], Scores]

_MAX_IDS = 500_000  # ids in memory at once; a larger sample needs several scans of the corpus
_SHORT_PASSAGE = 25  # words of a short passage, for an estimate of the number of passages in a budget of words
_KEY_BITS = 53  # bits of the integers that a double represents exactly


def random_sample(inputs: SelectionInputs, accept: CandidateFilter) -> Selected:
    """Select a random sample of the corpus: a control that ignores the task."""
    limit_to_hits(inputs, accept)
    return whole_corpus(inputs, accept)


def whole_corpus(inputs: SelectionInputs, accept: CandidateFilter) -> Selected:
    """Select every passage in random order."""
    return best_passages(inputs, accept, random_order(inputs.index, inputs.seed), scored=False)


def nothing(inputs: SelectionInputs, accept: CandidateFilter) -> Selected:  # noqa: ARG001
    """Select no passage."""
    return Selected(iter(()))


def limit_to_hits(inputs: SelectionInputs, accept: CandidateFilter) -> None:
    """If the recipe has no budget, set `accept.max_passages` to the number of query hits that leak no text.

    Raises EmptySelection if this number is zero.
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
    """Yield all passages by decreasing score, then id. count: number of passages that the caller will likely read.

    Memory does not grow with the corpus, because each scan ranks only the next passages. The first scan ranks `count`
    passages, and some more to replace leaks. Each later scan ranks up to twice as many as the scan before it.
    scored: whether `Ranked.score` is set.
    """
    size = min(count + count // 8 + 8, _MAX_IDS)
    last, position = (-math.inf, ""), 0
    while True:
        # A key sorts by decreasing score, then by id.
        keys = ((-score, name) for ids, scores in scan() for score, name in zip(scores.tolist(), ids, strict=True))
        best = heapq.nsmallest(size, (key for key in keys if key > last))
        for negative_score, name in best:
            yield Ranked(position, name, position + 1, -negative_score if scored else None)
            position += 1
        if len(best) < size:
            return
        last, size = best[-1], min(2 * size, _MAX_IDS)


def random_order(index: PassageIndex, seed: int) -> Scan:
    """Return a scan that gives each passage a random score, which depends only on `seed` and the passage id."""
    return lambda: ((ids, -uniform(ids, seed)) for ids in index.ids())


def uniform(ids: Sequence[str], seed: int) -> Scores:
    """Return a random number in (0, 1) for each id, [ids]. The number depends only on the id and `seed`."""
    keys = [hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8] for name in ids]
    bits = np.frombuffer(b"".join(keys), dtype=">u8").astype(np.uint64) >> np.uint64(64 - _KEY_BITS)
    return (bits.astype(np.float64) + 0.5) / 2.0**_KEY_BITS


def scan_texts(index: PassageIndex, scorer: Scorer, progress: Progress) -> Scan:
    """Return a scan that reads the passages in batches, and scores them with `scorer`."""
    return lambda: (([passage.id for passage in batch], scorer(batch)) for batch in iterate_passages(index, progress))


def iterate_passages(index: PassageIndex, progress: Progress) -> Iterator[list[Passage]]:
    """Yield every passage of the index once, in batches, and report each batch to `progress`."""
    total, done = index.count(), 0
    for ids in index.ids():
        passages = index.fetch(ids)
        yield [passages[name] for name in ids]
        done += len(ids)
        progress(done, total, "passages")
