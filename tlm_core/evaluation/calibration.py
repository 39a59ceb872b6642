"""The calibration error and the risk-coverage curve of a classifier, as the report stores them.

The confidence of a prediction is the probability of its label. This module does not import torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlm_core.evaluation.combine import Outputs, softmax
from tlm_core.tasks.metrics import Targets

BINS = 15
POINTS = 20
DRAWS = 100

Floats = NDArray[np.float64]


def trust(outputs: Outputs, targets: Targets) -> dict[str, dict[str, object]]:
    """Return the results of `calibration` and `risk_coverage` under these names. outputs: logits [rows, labels]."""
    confidence = softmax(outputs).max(axis=1).astype(np.float64)  # as the gateway computes it, for `min_confidence`
    correct = outputs.argmax(axis=1) == targets
    return {"calibration": calibration(confidence, correct), "risk_coverage": risk_coverage(confidence, correct)}


def calibration(confidence: Floats, correct: NDArray[np.bool_]) -> dict[str, Any]:
    """Return `error`, `chance` and `bins` of the calibration (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599).

    confidence, correct: [rows], at least one row.
    error: the mean over `bins` of |accuracy - confidence|. Bins hold equally many rows (Nixon et al. 2019, arXiv
    1904.01685). All rows of equal confidence count with their mean accuracy. So the error does not depend on how the
    bins divide these rows.
    chance: the mean error of a perfectly calibrated model with the same confidences. Each row of this model is correct
    with the probability `confidence` (Bröcker and Smith 2007). With few rows, this error is high too.
    """
    order = np.argsort(confidence, kind="stable")
    confidence = confidence[order]
    _, group, sizes = np.unique(confidence, return_inverse=True, return_counts=True)

    def of_groups(outcomes: NDArray[np.bool_]) -> Floats:
        return (np.bincount(group, weights=outcomes) / sizes)[group]

    accuracy, random = of_groups(correct[order]), np.random.default_rng(0)
    chance = [_error(confidence, of_groups(random.random(len(order)) < confidence)) for _ in range(DRAWS)]
    bins = zip(_parts(confidence), _parts(accuracy), strict=True)
    return {
        "error": _error(confidence, accuracy),
        "chance": float(np.mean(chance)),
        "bins": [
            {"rows": len(sure), "confidence": float(sure.mean()), "accuracy": float(right.mean())}
            for sure, right in bins
        ],
    }


def _parts(values: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    return np.array_split(values, min(BINS, len(values)))


def _error(confidence: Floats, accuracy: Floats) -> float:
    """Return the mean over bins of |accuracy - confidence|, weighted by rows. Arrays: [rows], sorted by confidence."""
    return float(sum(abs(part.sum()) for part in _parts(accuracy - confidence)) / len(confidence))


def risk_coverage(confidence: Floats, correct: NDArray[np.bool_]) -> dict[str, Any]:
    """Return `points` and `area` of the curve of a model that abstains below a threshold (Geifman and El-Yaniv 2017).

    confidence, correct: [rows], at least one row.
    points: `coverage` is the share of rows whose confidence is at least `threshold`. `risk` is the share of errors
    among these rows. area: the mean risk over all coverages.
    Rows of equal confidence belong to the same point, and count with their mean error. So the area does not depend on
    the order of the rows.
    """
    order = np.argsort(-confidence, kind="stable")
    confidence, rows = confidence[order], np.arange(1, len(order) + 1)
    # The last row of each group of equal confidence.
    ends = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))
    errors = np.cumsum(~correct[order])[ends]
    risk = np.interp(rows, [0, *rows[ends]], [0, *errors]) / rows
    last = ends[np.searchsorted(ends, np.ceil(rows[-1] * np.arange(1, POINTS + 1) / POINTS) - 1)]
    points = [
        {"coverage": float(rows[at] / rows[-1]), "risk": float(risk[at]), "threshold": float(confidence[at])}
        for at in np.unique(last)
    ]
    return {"area": float(risk.mean()), "points": points}
