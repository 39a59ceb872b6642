"""Self-training: a linear model learns from the retrieved passages, which a teacher labels.

Passages are cut into pieces as long as the task's texts. The most confident pieces of each label join train with a
lower weight, and their words count in the inverse document frequencies (SentAugment, arXiv 2010.02194).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from tlm_core.evaluation.combine import Outputs, log_softmax
from tlm_core.linear.fit import Setting, support_vectors
from tlm_core.linear.model import Features, LinearModel, rows_of
from tlm_core.linear.ngrams import FAMILIES, Row
from tlm_core.tasks.metrics import METRICS
from tlm_core.tasks.task import Task

WEIGHT = 0.3  # of a piece, relative to a train row
ROUNDS = 2  # each labels the pieces again
MOST_PIECES = 60_000  # that the teacher labels
MOST_LABELED = 20_000  # that the student learns from


@dataclass(frozen=True)
class SelfTrained:
    """A student. amount: pieces for each train row, 0 for none; scores: amount → score on validation."""

    model: LinearModel
    amount: float
    scores: dict[float, float]
    pieces: int


def pieces_of(passages: Iterable[str], words: int) -> Iterator[str]:
    """Cut each passage into equal pieces of about `words` words."""
    for passage in passages:
        tokens = passage.split()
        count = max(1, round(len(tokens) / words))
        for number in range(count):
            yield " ".join(tokens[len(tokens) * number // count : len(tokens) * (number + 1) // count])


def self_train(
    task: Task, teacher: Outputs, pieces: Sequence[str], setting: Setting, amounts: Sequence[float]
) -> SelfTrained:
    """Train a student for each amount of pieces and return the best on validation; the smaller amount wins ties.

    teacher: calibrated log-probabilities of the pieces, [pieces, labels]. The amount 0 changes only the features.
    """
    rows: list[Row] = [(piece,) for piece in pieces]
    features, _ = Features.learn([*rows_of(task, "train"), *rows], list(FAMILIES)[: setting.families])
    data = _Data(
        train=features.encode(rows_of(task, "train")),
        targets=task.targets("train").astype(np.int64),
        pieces=features.encode(rows),
        validation=features.encode(rows_of(task, "validation")),
    )
    students: dict[float, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    scores: dict[float, float] = {}
    for amount in amounts:
        students[amount] = _student(data, teacher, setting, len(task.labels), amount)
        weights, bias = students[amount]
        predicted = task.type.predict(np.asarray(data.validation @ weights) + bias)
        scores[amount] = METRICS[task.metric].compute(task.targets("validation"), predicted)
    best = max(sorted(scores), key=lambda amount: scores[amount])
    return SelfTrained(LinearModel(features, *students[best]), best, scores, len(pieces))


@dataclass(frozen=True)
class _Data:
    """Features of each set of rows, [rows, features], and the train labels [rows]."""

    train: sp.csr_matrix
    targets: NDArray[np.int64]
    pieces: sp.csr_matrix
    validation: sp.csr_matrix


def _student(
    data: _Data, teacher: Outputs, setting: Setting, labels: int, amount: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weights and bias of a student, which is the teacher of the next round."""
    weights, bias = support_vectors(data.train, data.targets, setting, labels)
    if not amount:
        return weights, bias
    shares = np.bincount(data.targets, minlength=labels) / len(data.targets)
    total = min(round(amount * len(data.targets)), MOST_LABELED)
    for _ in range(ROUNDS):
        chosen = most_confident(teacher, shares, total)
        guesses = teacher[chosen].argmax(axis=1)
        row_weights = np.concatenate([np.ones(len(data.targets)), np.full(len(chosen), WEIGHT)])
        weights, bias = support_vectors(
            sp.vstack([data.train, data.pieces[chosen]]).tocsr(),
            np.concatenate([data.targets, guesses]),
            setting,
            labels,
            row_weights,
        )
        teacher = log_softmax(np.asarray(data.pieces @ weights, np.float32) + bias)
    return weights, bias


def most_confident(teacher: Outputs, shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Return `total` pieces or fewer: of each label its share, the most probable first.

    teacher: log-probabilities [pieces, labels]; shares: of the labels in train.
    """
    guesses, chosen = teacher.argmax(axis=1), []
    for label, share in enumerate(shares):
        members = np.flatnonzero(guesses == label)
        order = np.argsort(-teacher[members, label], kind="stable")
        chosen.append(members[order[: round(total * share)]])
    return np.sort(np.concatenate(chosen))
