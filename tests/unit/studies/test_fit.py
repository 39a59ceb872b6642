"""Curve fits on generated data."""

from __future__ import annotations

import numpy as np
import pytest

from tlm_core.studies.fit import PowerLaw, compare, crossing, fit

SIZES = np.array([30.0, 100, 300, 1000, 3000])


@pytest.mark.parametrize(("a", "b", "c"), [(2.0, 0.5, 0.1), (0.9, 0.08, 0.0), (5.0, 1.2, 0.25), (0.4, 0.3, 0.02)])
def test_fit_recovers_parameters(a: float, b: float, c: float) -> None:
    law = fit(SIZES.tolist(), PowerLaw(a, b, c)(SIZES).tolist())
    assert (law.a, law.b, law.c) == pytest.approx((a, b, c), rel=0.01, abs=0.005)


def test_small_noise_changes_parameters_little() -> None:
    random = np.random.default_rng(0)
    errors = PowerLaw(2.0, 0.5, 0.1)(SIZES) + random.normal(0, 0.003, len(SIZES))
    law = fit(SIZES.tolist(), errors.tolist())
    assert law.b == pytest.approx(0.5, abs=0.05) and law.c == pytest.approx(0.1, abs=0.01)


def test_flat_curve_gives_constant_law() -> None:
    law = fit(SIZES.tolist(), [0.2] * 5)
    assert law(np.array([50.0, 5000.0])) == pytest.approx([0.2, 0.2], abs=1e-3)


def test_rising_errors_give_constant_law() -> None:
    assert fit(SIZES.tolist(), [0.1, 0.15, 0.2, 0.25, 0.3]).a == 0.0


def test_two_sizes_are_rejected() -> None:
    with pytest.raises(ValueError, match="at least three different sizes"):
        fit([10, 100], [0.5, 0.3])


def test_crossing_is_where_difference_equals_margin() -> None:
    small, large = PowerLaw(2.0, 0.5, 0.1), PowerLaw(1.0, 0.5, 0.1)  # the gap is n ** -0.5
    assert crossing(small, large, 0.01, 30, 1e6) == pytest.approx(10_000, rel=0.01)
    assert crossing(small, large, 0.01, 30, 5_000) is None
    assert crossing(large, small, 0.01, 30, 5_000) == 30


def test_equal_curves_do_not_cross_without_a_margin() -> None:
    law = PowerLaw(1.0, 0.5, 0.1)
    assert crossing(law, law, 0.0, 30, 5_000) is None and crossing(law, law, 0.01, 30, 5_000) == 30
    points = [(n, [0.2, 0.2]) for n in SIZES.tolist()]
    result = compare(points, points, margin=0.0)
    assert (result["labels"], result["never_within"]) == (None, 1.0)
    assert result["reason"] == "the fitted curves show no lower error even at 3,000,000 labels"


def test_crossing_at_the_smallest_size_has_a_note() -> None:
    better, worse = ([(n, [error] * 2) for n in SIZES.tolist()] for error in (0.1, 0.2))
    assert compare(better, worse, margin=0.0)["note"] == "at or below the smallest measured size, 30 labels"


def test_interval_of_equal_seeds_is_the_estimate() -> None:
    curves = [[(n, [float(law(np.array(n)))] * 3) for n in SIZES.tolist()]
              for law in (PowerLaw(2.0, 0.53, 0.06), PowerLaw(0.6, 0.31, 0.09))]  # fmt: skip
    result = compare(*curves, margin=0.01)
    assert result["interval"] == [result["labels"]] * 2 and result["labels"] > 30


def noisy(law: PowerLaw, seed: int, noise: float = 0.002) -> list[tuple[float, list[float]]]:
    random = np.random.default_rng(seed)
    return [(n, (law(np.array(n)) + random.normal(0, noise, 3)).tolist()) for n in SIZES.tolist()]


def test_interval_contains_true_crossing_and_notes_extrapolation() -> None:
    result = compare(noisy(PowerLaw(2.0, 0.5, 0.1), 1), noisy(PowerLaw(1.0, 0.5, 0.1), 2), margin=0.01)
    assert 3_000 < result["labels"] < 40_000
    assert "extrapolation" in result["note"]
    low, high = result["interval"]
    assert low < 10_000 and (high is None or high > 10_000)


def test_curves_without_crossing_give_none_with_reason() -> None:
    result = compare(noisy(PowerLaw(1.0, 0.5, 0.3), 1), noisy(PowerLaw(1.0, 0.5, 0.1), 2), margin=0.01)
    assert result["labels"] is None and "differ by more than" in result["reason"]
    assert result["never_within"] == 1.0 and result["interval"] == [None, None]


def test_single_seed_gives_no_interval() -> None:
    curves = [[(n, e[:1]) for n, e in noisy(law, 1)] for law in (PowerLaw(2.0, 0.5, 0.1), PowerLaw(1.0, 0.5, 0.1))]
    result = compare(*curves, margin=0.01)
    assert result["labels"] is not None and result["interval"] is None
    assert result["interval_reason"] == "one seed has no spread; use several seeds"


def test_comparison_of_two_sizes_gives_reason() -> None:
    curve = noisy(PowerLaw(1.0, 0.5, 0.1), 1)[:2]
    assert compare(curve, curve, margin=0.01)["reason"].startswith("fewer than three sizes")
