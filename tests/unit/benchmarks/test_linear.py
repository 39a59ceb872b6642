"""The linear model of the benchmarks states how much its score depends on the test rows."""

from __future__ import annotations

import numpy as np

from benchmarks.quality.linear import interval


def test_interval_contains_the_score_and_narrows_with_more_rows() -> None:
    labels = np.tile(["a", "b", "c", "c"], 20)
    predictions = np.where(np.arange(len(labels)) % 5, labels, "a")
    low, high = interval(labels, predictions)
    assert 0.6 < low < 0.82 < high < 0.95
    narrow_low, narrow_high = interval(np.tile(labels, 20), np.tile(predictions, 20))
    assert narrow_high - narrow_low < (high - low) / 3
