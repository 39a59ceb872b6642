"""The calibration error and the risk-coverage curve."""

from __future__ import annotations

import numpy as np
import pytest

from tlm_core.evaluation.calibration import BINS, POINTS, calibration, risk_coverage, trust
from tlm_core.evaluation.combine import softmax


def drawn(rows: int, gap: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences and outcomes of a calibrated classifier, whose reported confidence is `gap` too low."""
    random = np.random.default_rng(0)
    confidence = random.uniform(0.3, 0.9, rows)
    return confidence - gap, random.random(rows) < confidence


def test_error_is_the_weighted_gap_between_confidence_and_accuracy() -> None:
    confidence = np.repeat([0.5, 0.6, 0.7, 0.8, 0.9], 24)
    correct = np.tile([True, True, True, False], 30)  # accuracy 0.75 in every bin
    result = calibration(confidence, correct)
    assert result["error"] == pytest.approx(np.mean([0.25, 0.15, 0.05, 0.05, 0.15]))
    assert [part["rows"] for part in result["bins"]] == [8] * BINS
    assert result["bins"][0]["confidence"] == pytest.approx(0.5) and result["bins"][-1]["confidence"] == pytest.approx(
        0.9
    )
    assert {part["accuracy"] for part in result["bins"]} == {0.75}


def test_calibrated_classifier_has_the_error_of_chance() -> None:
    for rows in (100, 10_000):
        result = calibration(*drawn(rows))
        assert result["error"] == pytest.approx(result["chance"], rel=0.5)
    assert calibration(*drawn(100))["chance"] > 5 * calibration(*drawn(10_000))["chance"]


def test_shifted_confidence_is_measured() -> None:
    result = calibration(*drawn(20_000, gap=0.1))
    assert result["error"] == pytest.approx(0.1, abs=0.01) and result["error"] > 5 * result["chance"]


def test_curve_has_the_error_rate_of_the_most_confident_rows() -> None:
    confidence = np.linspace(0.01, 1, 100)
    result = risk_coverage(confidence, confidence > 0.4)  # the 40 least confident rows are wrong
    assert len(result["points"]) == POINTS
    assert [point["coverage"] for point in result["points"]] == pytest.approx(np.arange(1, 21) / 20)
    by_coverage = {round(point["coverage"], 2): point for point in result["points"]}
    assert by_coverage[0.6]["risk"] == 0 and by_coverage[0.6]["threshold"] == pytest.approx(0.41)
    assert by_coverage[0.8]["risk"] == pytest.approx(0.25) and by_coverage[1.0]["risk"] == pytest.approx(0.4)
    assert result["area"] == pytest.approx(np.mean([max(0, covered - 60) / covered for covered in range(1, 101)]))


def test_rows_of_equal_confidence_share_one_point() -> None:
    result = risk_coverage(np.repeat([0.9, 0.5], 50), np.repeat([True, False], 50))
    assert [(point["coverage"], point["risk"], point["threshold"]) for point in result["points"]] == [
        (0.5, 0, 0.9),
        (1, 0.5, 0.5),
    ]


def test_area_does_not_depend_on_the_order_of_equal_confidences() -> None:
    confidence, random = np.repeat([0.9, 0.5], [1, 4]), np.random.default_rng(0)
    correct = np.array([True, True, True, False, False])
    areas = []
    for _ in range(10):
        order = random.permutation(5)
        areas.append(risk_coverage(confidence[order], correct[order])["area"])
    # The errors grow by one half with each of the four equal rows.
    assert areas == pytest.approx([np.mean([0, 0.5 / 2, 1 / 3, 1.5 / 4, 2 / 5])] * 10)


def test_error_does_not_depend_on_the_order_of_equal_confidences() -> None:
    confidence, correct = np.full(100, 0.5), np.repeat([True, False], 50)
    shuffled = np.random.default_rng(0).permutation(correct)
    first, second = calibration(confidence, correct), calibration(confidence, shuffled)
    assert first == second and first["error"] == pytest.approx(0)
    assert {part["accuracy"] for part in first["bins"]} == {0.5}


def test_threshold_covers_the_rows_of_its_point_in_the_gateway() -> None:
    outputs = np.random.default_rng(0).normal(0, 6, (2000, 3)).astype(np.float32)
    served = softmax(outputs).max(axis=1).tolist()  # as `Model.probabilities` computes them
    for point in trust(outputs, np.zeros(2000, np.int64))["risk_coverage"]["points"]:
        assert np.mean([confidence >= point["threshold"] for confidence in served]) == point["coverage"]


def test_one_row_has_one_bin_and_one_point() -> None:
    parts = trust(np.array([[2.0, 0.0]], np.float32), np.array([1]))
    confidence = 1 / (1 + np.exp(-2))
    assert parts["calibration"]["error"] == pytest.approx(confidence)
    assert parts["risk_coverage"]["points"] == [{"coverage": 1, "risk": 1, "threshold": pytest.approx(confidence)}]
