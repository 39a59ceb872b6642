"""How much a passage looks like the task: importance resampling (DSIR, 2302.03169), and a linear classifier."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlm_core.corpus.passages import Passage
from tlm_core.errors import EmptySelection
from tlm_core.selection.analysis import Analysis, terms
from tlm_core.selection.draw import best_first, passages_of, shuffled, uniform
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.queries import Queries
from tlm_core.selection.retrieve import Progress, retrieve

Worth = Callable[[Sequence[Passage]], NDArray[np.float64]]

BUCKETS = 10_000
_TEXTS = 1024

# The classifier learns from a sample, so that its cost does not grow with the task.
_ASKED = 2_000
_EACH = 10
_EXAMPLES = 10_000
_CLASSIFIER_BUCKETS = 2**18
_EPOCHS = 5


def importance(texts: Iterable[str], index: PassageIndex, analysis: Analysis, seed: int, progress: Progress) -> Worth:
    """DSIR: the log of how much likelier a passage's hashed words and word pairs are in the task than in the corpus.

    With a Gumbel draw added, so that the best k of it are a sample without replacement (section 4.2 of the paper).
    Each bucket counts once more than it occurs: tasks are far smaller than the paper's targets, and what the task by
    chance lacks must not rule a passage out.
    """
    hasher = _hasher(BUCKETS, analysis, normalised=False)
    task = sum((_counts(hasher, part) for part in _parts(texts)), np.ones(BUCKETS))
    corpus = np.ones(BUCKETS)
    for batch in passages_of(index, progress):
        corpus += _counts(hasher, [passage.text for passage in batch])
    ratios = np.log(task / task.sum()) - np.log(corpus / corpus.sum())

    def worth(batch: Sequence[Passage]) -> NDArray[np.float64]:
        weights = hasher.transform([passage.text for passage in batch]) @ ratios
        drawn = uniform([passage.id for passage in batch], seed)
        return np.asarray(weights - np.log(-np.log(drawn)), np.float64)

    return worth


def classifier(
    queries: Queries,
    index: PassageIndex,
    analysis: Analysis,
    seed: int,
    *,
    folder: Path,
    corpus: str,
    progress: Progress,
) -> Worth:
    """A logistic regression on hashed words and word pairs: what the queries find against random passages.

    Asks at most 2,000 queries, drawn by `seed`. Raises EmptySelection if they find nothing, or if they find the whole
    corpus, so that nothing is left to tell them from.
    """
    from sklearn.linear_model import SGDClassifier

    asked = queries.picked(random.Random(seed).sample(range(len(queries)), min(_ASKED, len(queries))))
    found = retrieve(asked, index, _EACH, folder, progress)
    liked = [one.id for one in islice(found.ranked(), _EXAMPLES)]
    known = set(found.ids.to_pylist())
    drawn = best_first(shuffled(index, seed), len(liked) + len(known), scored=False)
    others = list(islice((one.id for one in drawn if one.id not in known), len(liked)))
    if not liked or not others:
        what = "nothing" if not liked else "every passage"
        raise EmptySelection(f"the train texts find {what} of corpus '{corpus}'; take another one, or selector 'bm25'")
    hasher = _hasher(_CLASSIFIER_BUCKETS, analysis, normalised=True)
    passages = index.fetch(liked) | index.fetch(others)
    features = hasher.transform([passages[name].text for name in (*liked, *others)])
    labels = np.repeat([1, 0], [len(liked), len(others)])
    model = SGDClassifier(
        loss="log_loss", alpha=1e-5, max_iter=_EPOCHS, tol=None, average=True, class_weight="balanced",
        random_state=seed,
    ).fit(features, labels)  # fmt: skip

    def worth(batch: Sequence[Passage]) -> NDArray[np.float64]:
        scores = model.decision_function(hasher.transform([passage.text for passage in batch]))
        return np.asarray(scores, np.float64)

    return worth


def _hasher(buckets: int, analysis: Analysis, *, normalised: bool) -> Any:
    """Counts of hashed words and pairs of neighbours; normalised: rows of length one, hashed with a sign."""
    from sklearn.feature_extraction.text import HashingVectorizer

    def features(text: str) -> list[str]:
        words = terms(text, analysis)
        return [*words, *(f"{first} {second}" for first, second in pairwise(words))]

    norm = "l2" if normalised else None
    return HashingVectorizer(analyzer=features, n_features=buckets, norm=norm, alternate_sign=normalised)


def _counts(hasher: Any, texts: Sequence[str]) -> NDArray[np.float64]:
    return np.asarray(hasher.transform(texts).sum(axis=0), np.float64).ravel()


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for text in texts:
        part.append(text)
        if len(part) == _TEXTS:
            yield part
            part = []
    if part:
        yield part
