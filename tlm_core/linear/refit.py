"""Fitting a linear model again after all choices, on train and validation: labels are rare, and each of them helps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tlm_core.evaluation.combine import Outputs
from tlm_core.linear.fit import Setting, solve
from tlm_core.linear.model import Features, LinearModel, rows_of
from tlm_core.linear.ngrams import FAMILIES
from tlm_core.linear.self_training import row_weights
from tlm_core.tasks.task import LABELED, Task

Pieces = tuple[Sequence[str], Outputs]  # texts, and the probabilities of their labels [pieces, labels]


def refit(task: Task, setting: Setting, pieces: Pieces | None) -> LinearModel:
    """Fit a linear model on train and validation, and on the pieces of passages of a self-trained model."""
    rows = [row for split in LABELED for row in rows_of(task, split)]
    targets = np.concatenate([task.targets(split) for split in LABELED])
    weights = None
    if pieces is not None:
        texts, probabilities = pieces
        weights = row_weights(len(rows), len(texts))
        rows += [(text,) for text in texts]
        targets = np.concatenate([targets, probabilities.argmax(axis=1)])
    features, sequences = Features.learn(rows, list(FAMILIES)[: setting.families], setting.start_words)
    return LinearModel(features, *solve(task, features.matrix(sequences), targets, setting, weights))
