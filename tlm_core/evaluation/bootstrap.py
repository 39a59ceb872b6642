"""Paired bootstrap of the difference between two models on the same rows (Efron and Tibshirani 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlm_core.tasks.metrics import METRICS, Targets, Undefined

RESAMPLES = 500


@dataclass(frozen=True)
class Difference:
    """The score of one model minus that of another. low, high: 95 % interval. error: the standard error."""

    value: float
    low: float
    high: float
    error: float

    @property
    def distinguishable(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_difference(
    metric: str,
    targets: Targets,
    first: Sequence[Targets],
    second: Sequence[Targets],
    resamples: int = RESAMPLES,
) -> Difference | None:
    """Compare two models, each with the predictions [rows] of one or more runs, whose scores are averaged.

    Each resample draws the same rows for both. Returns None where the metric has no value.
    """
    compute = METRICS[metric].compute

    def difference(rows: NDArray[np.int64]) -> float:
        scores = [np.mean([compute(targets[rows], run[rows]) for run in runs]) for runs in (first, second)]
        return float(scores[0] - scores[1])

    random, values = np.random.default_rng(0), []
    try:
        value = difference(np.arange(len(targets)))
    except Undefined:
        return None
    for _ in range(resamples):
        try:
            values.append(difference(random.integers(0, len(targets), len(targets))))
        except Undefined:  # such as a resample with a single regression target
            continue
    if not values:
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return Difference(value, float(low), float(high), float(np.std(values)))
