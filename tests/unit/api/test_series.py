"""Thinned series for charts keep their ends and extremes."""

from __future__ import annotations

import math
import random

import pytest

from services.api.series import thinned
from tlm_core.training.recipe import differences


def line(values: list[float]) -> list[tuple[float, float, float]]:
    return [(float(step), 100.0 + step, value) for step, value in enumerate(values)]


@pytest.mark.parametrize("points", [4, 5, 17, 100, 999, 1000, 5000])
def test_thinned_series_keeps_ends_peaks_and_order(points: int) -> None:
    rng = random.Random(points)
    values = [rng.gauss(0, 1) for _ in range(1000)]
    values[377], values[611] = 50.0, -50.0
    whole = line(values)
    remaining = thinned(whole, points)
    assert len(remaining) <= max(points, 4)
    assert (remaining[0], remaining[-1]) == (whole[0], whole[-1])
    assert {whole[377], whole[611]} <= set(remaining)
    assert remaining == sorted(remaining) and set(remaining) <= set(whole)


def test_short_series_is_unchanged() -> None:
    assert thinned(line([3.0, 1.0]), 4) == line([3.0, 1.0])


def test_every_part_keeps_its_extremes() -> None:
    wave = line([math.sin(step / 10) for step in range(2000)])
    values = [value for _, _, value in thinned(wave, 400)]
    assert max(values) == max(v for _, _, v in wave) and min(values) == min(v for _, _, v in wave)


def test_differences_list_only_unequal_keys() -> None:
    settings = [{"a": 1, "b": {"c": 2, "d": [1]}}, {"a": 1, "b": {"c": 3}}]
    assert differences(settings) == {"b.c": (2, 3), "b.d": ([1], None)}
