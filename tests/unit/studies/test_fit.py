"""Curve fits on made data."""

from __future__ import annotations

import numpy as np
import pytest

from tlm_core.studies.fit import PowerLaw, compare, crossing, fit

SIZES = np.array([30.0, 100, 300, 1000, 3000])


@pytest.mark.parametrize(("a", "b", "c"), [(2.0, 0.5, 0.1), (0.9, 0.08, 0.0), (5.0, 1.2, 0.25), (0.4, 0.3, 0.02)])
def test_made_data_gives_its_own_parameters_back(a: float, b: float, c: float) -> None:
    law = fit(SIZES.tolist(), PowerLaw(a, b, c)(SIZES).tolist())
    assert (law.a, law.b, law.c) == pytest.approx((a, b, c), rel=0.01, abs=0.005)


def test_noise_moves_the_parameters_a_little() -> None:
    random = np.random.default_rng(0)
    errors = PowerLaw(2.0, 0.5, 0.1)(SIZES) + random.normal(0, 0.003, len(SIZES))
    law = fit(SIZES.tolist(), errors.tolist())
    assert law.b == pytest.approx(0.5, abs=0.05) and law.c == pytest.approx(0.1, abs=0.01)


def test_a_flat_curve_is_a_constant() -> None:
    law = fit(SIZES.tolist(), [0.2] * 5)
    assert law(np.array([50.0, 5000.0])) == pytest.approx([0.2, 0.2], abs=1e-3)


def test_errors_that_rise_give_no_law_that_rises() -> None:
    assert fit(SIZES.tolist(), [0.1, 0.15, 0.2, 0.25, 0.3]).a == 0.0


def test_two_sizes_are_too_few() -> None:
    with pytest.raises(ValueError, match="at least three sizes"):
        fit([10, 100], [0.5, 0.3])


def test_the_crossing_is_where_the_gap_is_the_margin() -> None:
    small, large = PowerLaw(2.0, 0.5, 0.1), PowerLaw(1.0, 0.5, 0.1)  # the gap is n ** -0.5
    assert crossing(small, large, 0.01, 30, 1e6) == pytest.approx(10_000, rel=0.01)
    assert crossing(small, large, 0.01, 30, 5_000) is None
    assert crossing(large, small, 0.01, 30, 5_000) == 30


def made(law: PowerLaw, seed: int, noise: float = 0.002) -> list[tuple[float, list[float]]]:
    random = np.random.default_rng(seed)
    return [(n, (law(np.array(n)) + random.normal(0, noise, 3)).tolist()) for n in SIZES.tolist()]


def test_the_interval_holds_the_true_crossing_and_says_that_it_extrapolates() -> None:
    found = compare(made(PowerLaw(2.0, 0.5, 0.1), 1), made(PowerLaw(1.0, 0.5, 0.1), 2), margin=0.01)
    assert 3_000 < found["labels"] < 40_000
    assert "extrapolation" in found["note"]
    low, high = found["interval"]
    assert low < 10_000 and (high is None or high > 10_000)


def test_curves_that_never_meet_give_null_with_the_reason() -> None:
    found = compare(made(PowerLaw(1.0, 0.5, 0.3), 1), made(PowerLaw(1.0, 0.5, 0.1), 2), margin=0.01)
    assert found["labels"] is None and "do not come within" in found["reason"]
    assert found["never_within"] == 1.0 and found["interval"] == [None, None]


def test_one_seed_gives_a_number_without_an_interval() -> None:
    curves = [[(n, e[:1]) for n, e in made(law, 1)] for law in (PowerLaw(2.0, 0.5, 0.1), PowerLaw(1.0, 0.5, 0.1))]
    found = compare(*curves, margin=0.01)
    assert found["labels"] is not None and found["interval"] is None
    assert found["interval_reason"] == "one seed has no spread; give more seeds"


def test_two_sizes_tell_nothing() -> None:
    curve = made(PowerLaw(1.0, 0.5, 0.1), 1)[:2]
    assert compare(curve, curve, margin=0.01)["reason"].startswith("fewer than three sizes")
