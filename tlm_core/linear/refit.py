"""Fitting a linear model again after all choices, on train and validation: labels are rare, and each of them helps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tlm_core.evaluation.combine import Outputs
from tlm_core.linear.fit import Setting, ridge, support_vectors
from tlm_core.linear.model import Features, LinearModel, rows_of
from tlm_core.linear.ngrams import FAMILIES
from tlm_core.linear.self_training import WEIGHT
from tlm_core.tasks.task import Task

Pieces = tuple[Sequence[str], Outputs]  # texts, and the probabilities of their labels [pieces, labels]


def refit(task: Task, setting: Setting, pieces: Pieces | None) -> LinearModel:
    """Fit a setting on train and validation, and on the pieces of passages that a self-trained model learned from."""
    rows = [*rows_of(task, "train"), *rows_of(task, "validation")]
    targets = np.concatenate([task.targets("train"), task.targets("validation")])
    row_weights = np.ones(len(rows))
    if pieces is not None:
        texts, probabilities = pieces
        rows += [(text,) for text in texts]
        targets = np.concatenate([targets, probabilities.argmax(axis=1)])
        row_weights = np.concatenate([row_weights, np.full(len(texts), WEIGHT)])
    features, sequences = Features.learn(rows, list(FAMILIES)[: setting.families], setting.start_words)
    matrix = features.matrix(sequences)
    if not task.type.has_classes:
        return LinearModel(features, *ridge(matrix, targets, setting))
    return LinearModel(features, *support_vectors(matrix, targets, setting, len(task.labels), row_weights))
