"""Paired bootstrap of the difference between two models on the same rows (Efron and Tibshirani 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tlm_core.tasks.metrics import METRICS, Targets, Undefined

RESAMPLES = 500

Verdict = Literal["better", "worse", "not distinguishable"]


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

    @property
    def verdict(self) -> Verdict:
        """The verdict on the first model: "better" or "worse", or "not distinguishable" if the interval contains 0."""
        return ("better" if self.value > 0 else "worse") if self.distinguishable else "not distinguishable"

    @property
    def relation(self) -> str:
        """The verdict with its preposition, such as "better than"."""
        return f"{self.verdict} {'than' if self.distinguishable else 'from'}"


def paired_difference(
    metric: str, targets: Targets, first: Sequence[Targets], second: Sequence[Targets]
) -> Difference | None:
    """Return the difference between the scores of two models, or None if the metric is undefined on `targets`.

    The score of a model is the mean over its runs. first, second: the predictions [rows] of each run.
    Each of RESAMPLES resamples draws the same rows for both models. If the metric is undefined on a resample,
    the difference on this resample is 0.
    """
    if not len(targets):
        return None
    compute = METRICS[metric].compute

    def difference(rows: NDArray[np.int64]) -> float:
        scores = [np.mean([compute(targets[rows], run[rows]) for run in runs]) for runs in (first, second)]
        return float(scores[0] - scores[1])

    random, values = np.random.default_rng(0), []
    try:
        value = difference(np.arange(len(targets)))
    except Undefined:
        return None
    for _ in range(RESAMPLES):
        try:
            values.append(difference(random.integers(0, len(targets), len(targets))))
        except Undefined:  # for example, no row of the resample has the positive label
            values.append(0.0)  # Without such resamples, few informative rows would give a narrow interval.
    low, high = np.percentile(values, [2.5, 97.5])
    return Difference(value, float(low), float(high), float(np.std(values)))
