"""Self-training: models learn from the retrieved passages, which a teacher labels (SentAugment, arXiv 2010.02194).

Passages are cut into pieces that are as long as the texts of the task. The linear model learns from the train rows and,
with a lower weight, from the pieces of each label with the highest confidence. The inverse document frequencies include
the pieces. In the joint stage and in finetuning, the encoder learns the label probabilities of the pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from tlm_core.evaluation.bootstrap import paired_difference
from tlm_core.evaluation.combine import Outputs, log_softmax
from tlm_core.linear.fit import Fits, Setting, parallel_fits, support_vectors
from tlm_core.linear.model import Features, LinearModel, rows_of
from tlm_core.linear.ngrams import FAMILIES, Row, words_and_blanks
from tlm_core.linear.params import CANDIDATES, MOST_LABELED, ROUNDS
from tlm_core.tasks.metrics import best_of, ranking_score
from tlm_core.tasks.task import Task

WEIGHT = 0.3  # weight of a piece in the loss; a train row has the weight 1
LEAST_GAIN = 0.5  # in standard errors; with 1, gains are missed; with 0, chance decides on a small validation split
LEAST_GAIN_OF_OTHERS = 1.0  # in standard errors, for pieces that do not resemble the task: their labels are often wrong
MOST_SEPARABLE = 0.9  # maximum separability of pieces that resemble the task
COMPARED_TEXTS = 1_000  # number of train texts, and of pieces, in the comparison of `separability`


@dataclass(frozen=True)
class Student:
    """A model trained on rows and pieces. chosen: indices of the pieces. outputs: for the pieces, [chosen, labels]."""

    model: LinearModel
    chosen: NDArray[np.int64]
    outputs: Outputs


@dataclass(frozen=True)
class SelfTrained:
    """The chosen number of pieces per train row (`amount`), with its student.

    The amount 0 is the baseline, and has no student. scores: amount → score on validation, see `ranking_score`.
    separability: see the function `separability`.
    """

    amount: float
    scores: dict[float, float | None]
    student: Student | None
    separability: float


def pieces_of(passages: Iterable[str], words: int) -> Iterator[str]:
    """Divide each passage into pieces of equal length, with about `words` words each. Yield the pieces."""
    for passage in passages:
        tokens = words_and_blanks(passage)
        count = max(1, round(len(tokens) / words))
        for number in range(count):
            piece = "".join(tokens[len(tokens) * number // count : len(tokens) * (number + 1) // count])
            yield " ".join(piece.split())


def self_train(
    task: Task, baseline: Outputs, teacher: Outputs, pieces: Sequence[str], setting: Setting, amounts: Sequence[float]
) -> SelfTrained:
    """Train a student for each amount (pieces per train row) above 0, and choose the best amount on validation.

    If the amounts include 0, the best student replaces the baseline only if its gain exceeds LEAST_GAIN standard
    errors. If the pieces do not resemble the task, the limit is LEAST_GAIN_OF_OTHERS. baseline: outputs of the linear
    model on validation. teacher: calibrated log-probabilities, [pieces, labels].
    """
    rows, train = rows_of(task, "train"), task.targets("train").astype(np.int64)
    most = MOST_LABELED / len(train)  # larger amounts give the same pieces
    positive = sorted({min(amount, most) for amount in amounts if amount})
    totals = [piece_count(amount, len(train)) for amount in positive]
    pool = Pool(rows, train, pieces, teacher, setting, max(totals, default=0))
    validation = pool.features.encode(rows_of(task, "validation"))
    with parallel_fits(pool.rows.nnz + pool.pieces.nnz) as fits:
        students = dict(zip(positive, fits.map(partial(pool.student, fits), totals), strict=True))
    targets = task.targets("validation")
    guesses = {0.0: task.type.predict(baseline)} if 0 in amounts else {}
    for amount, student in students.items():
        guesses[amount] = task.type.predict(student.model.outputs_of(validation))
    scores = {amount: ranking_score(task.metric, targets, guess) for amount, guess in guesses.items()}
    best = list(scores)[best_of(list(scores.values()))]  # in a tie, or without scores, the smallest amount
    separable = separability(rows, pieces)
    if best and 0 in scores:
        difference = paired_difference(task.metric, targets, [guesses[best]], [guesses[0]])
        least = LEAST_GAIN if separable <= MOST_SEPARABLE else LEAST_GAIN_OF_OTHERS
        if difference is None or difference.value <= least * difference.error:
            best = 0.0
    return SelfTrained(best, scores, students.get(best), separable)


def piece_count(amount: float, rows: int) -> int:
    """Return the number of pieces from which a student with `rows` train rows learns. amount: pieces per train row."""
    return min(round(amount * rows), MOST_LABELED)


def separability(rows: Sequence[Row], pieces: Sequence[str]) -> float:
    """Return how well a linear model separates train texts from pieces of passages: 0.5 (not at all) to 1.

    The value is the area under the ROC curve on held-out texts (two folds). Self-training needs pieces that resemble
    the texts of the task (Ben-David et al. 2006, "Analysis of representations for domain adaptation"). With fewer than
    two train texts or two pieces, the value is 1.
    """
    from sklearn.metrics import roc_auc_score

    count = min(len(rows), len(pieces), COMPARED_TEXTS)
    if count < 2:
        return 1.0
    random = np.random.default_rng(0)
    own = [rows[number] for number in random.permutation(len(rows))[:count]]
    texts: list[Row] = own + [(pieces[number],) for number in random.permutation(len(pieces))[:count]]
    features, sequences = Features.learn(texts, list(FAMILIES)[:1])
    matrix, targets = features.matrix(sequences), np.repeat([0, 1], count)
    margins = np.zeros(len(targets))
    for fold in range(2):
        held_out = np.arange(len(targets)) % 2 == fold
        weights, bias = support_vectors(matrix[~held_out], targets[~held_out], Setting(1, 1.0, None), 2)
        margins[held_out] = (matrix[held_out] @ weights + bias)[:, 1]
    return float(roc_auc_score(targets, margins))


class Pool:
    """Labeled rows and candidate pieces. A student learns from all rows and from some candidates.

    rows: features of the rows, [rows, features]. pieces: features of the candidates, [candidates, features].
    """

    def __init__(
        self,
        rows: Sequence[Row],
        targets: NDArray[np.int64],
        pieces: Sequence[str],
        teacher: Outputs,
        setting: Setting,
        most: int,
    ) -> None:
        """Choose the candidates. teacher: log-probabilities [pieces, labels]. most: maximum `total` for `student`."""
        self._setting, self._targets = setting, targets
        self._shares = np.bincount(targets, minlength=teacher.shape[1]) / len(targets)
        self._candidates = most_confident(teacher, self._shares, most * CANDIDATES)
        self._teacher = teacher[self._candidates]
        texts: list[Row] = [(pieces[number],) for number in self._candidates]
        families = list(FAMILIES)[: setting.families]
        self.features, _ = Features.learn([*rows, *texts], families, setting.start_words)
        self.rows, self.pieces = self.features.encode(rows), self.features.encode(texts)

    def student(self, fits: Fits, total: int) -> Student:
        """Train ROUNDS students on rows and `total` pieces. Return the last. Each labels the pieces for the next."""
        teacher = self._teacher
        for _ in range(ROUNDS):
            chosen = most_confident(teacher, self._shares, total)
            solution = fits.call(
                support_vectors,
                sp.vstack([self.rows, self.pieces[chosen]]).tocsr(),
                np.concatenate([self._targets, teacher[chosen].argmax(axis=1)]),
                self._setting,
                len(self._shares),
                np.repeat([1.0, WEIGHT], [len(self._targets), len(chosen)]),
            )
            model = LinearModel(self.features, *solution)
            teacher = log_softmax(model.outputs_of(self.pieces))
        return Student(model, self._candidates[chosen], model.outputs_of(self.pieces[chosen]))


def most_confident(teacher: Outputs, shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Return the sorted indices of the chosen pieces: at most `total * share` pieces of each label, the most probable.

    A piece belongs to its most probable label. teacher: log-probabilities [pieces, labels]. shares: [labels], sum 1.
    """
    guesses, chosen = teacher.argmax(axis=1), []
    for label, share in enumerate(shares):
        members = np.flatnonzero(guesses == label)
        order = np.argsort(-teacher[members, label], kind="stable")
        chosen.append(members[order[: round(total * share)]])
    return np.sort(np.concatenate(chosen))
