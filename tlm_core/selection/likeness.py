"""The selectors `dsir` (importance resampling, arXiv 2302.03169) and `classifier`: passages that resemble the task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

from tlm_core.corpus.passages import Passage
from tlm_core.errors import EmptySelection
from tlm_core.selection.candidates import CandidateFilter
from tlm_core.selection.interface import Selected, SelectionInputs
from tlm_core.selection.queries import task_queries, train_texts
from tlm_core.selection.retrieve import retrieve
from tlm_core.selection.sampling import (
    Scorer,
    Scores,
    best_passages,
    iterate_passages,
    limit_to_hits,
    random_order,
    rank_by_score,
    scan_texts,
    uniform,
)
from tlm_core.selection.text_analysis import Analysis, analysis_of, terms

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import HashingVectorizer


BUCKETS = 10_000
_BATCH_TEXTS = 1024

# The classifier learns from a sample, so its cost does not grow with the task.
_MAX_QUERIES = 2_000
_HITS_PER_QUERY = 10
_MAX_EXAMPLES = 10_000
_CLASSIFIER_BUCKETS = 2**18
_EPOCHS = 5


def dsir(inputs: SelectionInputs, accept: CandidateFilter) -> Selected:
    """Select a random sample that favors passages whose words are more frequent in the task than in the corpus."""
    limit_to_hits(inputs, accept)
    return best_passages(inputs, accept, scan_texts(inputs.index, _importance(inputs), inputs.progress))


def _importance(inputs: SelectionInputs) -> Scorer:
    """Return a function that scores passages: log-likelihood under the texts of the task, minus that under the corpus.

    The likelihoods are those of hashed words and word pairs. The function adds Gumbel noise, so that the best k scores
    are a sample without replacement (section 4.2 of the DSIR paper). Each hash bucket starts with a count of one,
    because tasks are far smaller than the target data of the paper. Otherwise a word that the task lacks by chance
    would exclude a passage.
    """
    hasher = _hasher(BUCKETS, analysis_of(inputs.task.language), normalized=False)
    texts, task = (text for _, text in train_texts(inputs.task)), np.ones(BUCKETS)
    while batch := list(islice(texts, _BATCH_TEXTS)):
        task += _counts(hasher, batch)
    corpus = np.ones(BUCKETS)
    for passages in iterate_passages(inputs.index, inputs.progress):
        corpus += _counts(hasher, [passage.text for passage in passages])
    ratios = np.log(task / task.sum()) - np.log(corpus / corpus.sum())

    def score(batch: Sequence[Passage]) -> Scores:
        weights = hasher.transform([passage.text for passage in batch]) @ ratios
        draws = uniform([passage.id for passage in batch], inputs.seed)
        return np.asarray(weights - np.log(-np.log(draws)), np.float64)

    return score


def classifier(inputs: SelectionInputs, accept: CandidateFilter) -> Selected:
    """Select the passages that a linear classifier rates most like the hits of the queries."""
    limit_to_hits(inputs, accept)
    return best_passages(inputs, accept, scan_texts(inputs.index, _linear_classifier(inputs), inputs.progress))


def _linear_classifier(inputs: SelectionInputs) -> Scorer:
    """Return a function that scores passages by logistic regression on hashed words and word pairs.

    The regression separates query hits from random passages. The hits belong to at most 2,000 queries, which the seed
    draws at random. Raises EmptySelection if these queries hit no passage or every passage.
    """
    from sklearn.linear_model import SGDClassifier

    positives, negatives = _examples(inputs)
    passages = inputs.index.fetch(positives) | inputs.index.fetch(negatives)
    hasher = _hasher(_CLASSIFIER_BUCKETS, analysis_of(inputs.task.language), normalized=True)
    features = hasher.transform([passages[name].text for name in (*positives, *negatives)])
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    model = SGDClassifier(
        loss="log_loss",
        alpha=1e-5,
        max_iter=_EPOCHS,
        tol=None,
        average=True,
        class_weight="balanced",
        random_state=inputs.seed,
    ).fit(features, labels)

    def score(batch: Sequence[Passage]) -> Scores:
        scores = model.decision_function(hasher.transform([passage.text for passage in batch]))
        return np.asarray(scores, np.float64)

    return score


def _examples(inputs: SelectionInputs) -> tuple[list[str], list[str]]:
    """Return the ids of at most 10,000 query hits, and of as many random other passages, if the corpus has enough."""
    queries, index, seed = task_queries(inputs.task, inputs.params), inputs.index, inputs.seed
    sample = queries.subset(random.Random(seed).sample(range(len(queries.rows)), min(_MAX_QUERIES, len(queries.rows))))
    retrieved = retrieve(sample, index, _HITS_PER_QUERY, inputs.scratch / "examples", inputs.progress)
    positives = [entry.id for entry in islice(retrieved.ranked(), _MAX_EXAMPLES)]
    hits = set(retrieved.ids.to_pylist())
    shuffled = rank_by_score(random_order(index, seed), len(positives) + len(hits), scored=False)
    negatives = list(islice((entry.id for entry in shuffled if entry.id not in hits), len(positives)))
    if not positives or not negatives:
        hit = "no passage" if not positives else "every passage"
        raise EmptySelection(
            f"The queries retrieve {hit} of corpus '{inputs.corpus.name}'. The selector '{inputs.params.selector}' "
            "needs passages that the queries retrieve, and other passages. Use a larger corpus in the language and "
            "field of the task."
        )
    return positives, negatives


def _hasher(buckets: int, analysis: Analysis, *, normalized: bool) -> HashingVectorizer:
    """Return a vectorizer that counts hashed words and word pairs. normalized: signed counts, scaled to unit length."""
    from sklearn.feature_extraction.text import HashingVectorizer

    def features(text: str) -> list[str]:
        words = terms(text, analysis)
        return [*words, *(f"{first} {second}" for first, second in pairwise(words))]

    norm = "l2" if normalized else None
    return HashingVectorizer(analyzer=features, n_features=buckets, norm=norm, alternate_sign=normalized)


def _counts(hasher: HashingVectorizer, texts: Sequence[str]) -> Scores:
    return np.asarray(hasher.transform(texts).sum(axis=0), np.float64).ravel()
