"""Self-training: models learn from the retrieved passages, which a teacher labels (SentAugment, arXiv 2010.02194).

Passages are cut into pieces as long as the task's texts. The linear model learns from the train rows and, with a lower
weight, from the most confident pieces of each label. Words of pieces count in the inverse document frequencies. The
encoder learns the probabilities of the pieces' labels in the joint stage.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from tlm_core.evaluation.bootstrap import paired_difference
from tlm_core.evaluation.combine import Outputs, log_softmax
from tlm_core.linear.fit import Setting, support_vectors
from tlm_core.linear.model import Features, LinearModel, rows_of
from tlm_core.linear.ngrams import FAMILIES, Row
from tlm_core.linear.params import MOST_LABELED
from tlm_core.tasks.metrics import METRICS
from tlm_core.tasks.task import Task

WEIGHT = 0.3  # weight of a piece in the loss; a train row has the weight 1
ROUNDS = 2  # each round labels the pieces again
MOST_PIECES = 60_000  # limit on the pieces that the teacher labels
CANDIDATES = 2  # candidates for each piece that a student learns from; more of them cost time and add little


@dataclass(frozen=True)
class Student:
    """A model that learned from train rows and pieces. chosen: indices of these pieces; outputs: [chosen, labels]."""

    model: LinearModel
    chosen: NDArray[np.int64]
    outputs: Outputs


@dataclass(frozen=True)
class SelfTrained:
    """The chosen number of pieces per train row (`amount`), and the score of each tried amount on validation.

    The amount 0 is the baseline, and has no student.
    """

    amount: float
    scores: dict[float, float]
    student: Student | None


def pieces_of(passages: Iterable[str], words: int) -> Iterator[str]:
    """Cut each passage into equal pieces of about `words` words."""
    for passage in passages:
        tokens = passage.split()
        count = max(1, round(len(tokens) / words))
        for number in range(count):
            yield " ".join(tokens[len(tokens) * number // count : len(tokens) * (number + 1) // count])


def self_train(
    task: Task,
    baseline: Outputs,
    teacher: Outputs,
    pieces: Sequence[str],
    setting: Setting,
    amounts: Sequence[float],
) -> SelfTrained:
    """Train a student for each amount of pieces, and choose one on validation.

    If the amounts include 0, the best student must be better than the baseline by more than a standard error.
    Otherwise the baseline is chosen. baseline: outputs of the linear model on validation. teacher: calibrated
    log-probabilities of the pieces, [pieces, labels].
    """
    train = task.targets("train").astype(np.int64)
    most = MOST_LABELED / len(train)  # larger amounts give the same pieces
    positive = sorted({min(amount, most) for amount in amounts if amount})
    shares = np.bincount(train, minlength=len(task.labels)) / len(train)
    candidates = most_confident(teacher, shares, round(max(positive, default=0) * len(train) * CANDIDATES))
    teacher = teacher[candidates]
    rows: list[Row] = [(pieces[number],) for number in candidates]
    families = list(FAMILIES)[: setting.families]
    features, _ = Features.learn([*rows_of(task, "train"), *rows], families, setting.start_words)
    data = _Data(
        train=features.encode(rows_of(task, "train")),
        targets=train,
        pieces=features.encode(rows),
        validation=features.encode(rows_of(task, "validation")),
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fits = list(pool.map(lambda amount: _fit(data, teacher, setting, shares, amount), positive))
    targets = task.targets("validation")
    guesses = {0.0: task.type.predict(baseline)} if 0 in amounts else {}
    for amount, (weights, bias, _) in zip(positive, fits, strict=True):
        guesses[amount] = task.type.predict(np.asarray(data.validation @ weights) + bias)
    scores = {amount: METRICS[task.metric].compute(targets, guess) for amount, guess in guesses.items()}
    best = max(scores, key=lambda amount: scores[amount])  # in a tie, the smallest amount
    if best and 0 in scores:
        difference = paired_difference(task.metric, targets, [guesses[best]], [guesses[0]])
        if difference is not None and difference.value <= difference.error:
            best = 0.0
    if not best:
        return SelfTrained(0.0, scores, None)
    weights, bias, chosen = fits[positive.index(best)]
    outputs: Outputs = np.asarray(data.pieces[chosen] @ weights, np.float32) + bias
    return SelfTrained(best, scores, Student(LinearModel(features, weights, bias), candidates[chosen], outputs))


@dataclass(frozen=True)
class _Data:
    """Features of each set of rows, [rows, features], and the train labels [rows]."""

    train: sp.csr_matrix
    targets: NDArray[np.int64]
    pieces: sp.csr_matrix
    validation: sp.csr_matrix


def _fit(
    data: _Data, teacher: Outputs, setting: Setting, shares: NDArray[np.float64], amount: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return weights and bias of a student, and its pieces. The student of a round is the teacher of the next one."""
    total = round(amount * len(data.targets))
    for _ in range(ROUNDS):
        chosen = most_confident(teacher, shares, total)
        guesses = teacher[chosen].argmax(axis=1)
        weights, bias = support_vectors(
            sp.vstack([data.train, data.pieces[chosen]]).tocsr(),
            np.concatenate([data.targets, guesses]),
            setting,
            len(shares),
            row_weights(len(data.targets), len(chosen)),
        )
        teacher = log_softmax(np.asarray(data.pieces @ weights, np.float32) + bias)
    return weights, bias, chosen


def row_weights(rows: int, pieces: int) -> NDArray[np.float64]:
    """Return the weights of labeled rows, followed by those of pieces, [rows + pieces]."""
    return np.concatenate([np.ones(rows), np.full(pieces, WEIGHT)])


def most_confident(teacher: Outputs, shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Return the sorted indices of the most probable pieces of each label, at most about `total` in all.

    teacher: log-probabilities [pieces, labels]. shares: [labels], the part of `total` that each label may have.
    """
    guesses, chosen = teacher.argmax(axis=1), []
    for label, share in enumerate(shares):
        members = np.flatnonzero(guesses == label)
        order = np.argsort(-teacher[members, label], kind="stable")
        chosen.append(members[order[: round(total * share)]])
    return np.sort(np.concatenate(chosen))
