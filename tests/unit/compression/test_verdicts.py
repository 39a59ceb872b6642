"""The summaries of reports call a difference chance if it is within the spread of either side."""

from __future__ import annotations

from typing import Any

import pytest

from tlm_core.compression import phases, shared_report

BY_CHANCE = [(0.01, 0.02, 0.0), (0.01, 0.0, 0.02), (0.01, 0.02, 0.02)]


def pruned(gain: float, ours: float | None, dense: float | None) -> dict[str, Any]:
    return {
        "metric": "accuracy",
        "super_ticket": {"layers_left": 65, "layers_full": 100},
        "dense": {"mean": {"test": {"accuracy": 0.68}}, "spread": {"test": {"accuracy": dense}}},
        "mean": {"validation": {"accuracy": 0.7}, "test": {"accuracy": 0.68 + gain}},
        "spread": {"test": {"accuracy": ours}},
        "seeds": [{}] * (1 if ours is None else 3),
        "models": {"linear": {"mean": {"test": {"accuracy": 0.7}}}},
        "inference": {"speed_up": 1.5, "dense": {"bytes": 100.0}, "sliced": {"bytes": 84.0}},
    }


def shared(gain: float, ours: float | None, plain: float | None) -> dict[str, Any]:
    averages = {
        "majority": (0.2, None), "alone": (0.7, 0.0), "multi_task": (0.68, plain), "tickets": (0.68 + gain, ours),
        "linear": (0.7, None),
    }  # fmt: skip
    return {
        "average": {system: {"mean": mean, "std": std} for system, (mean, std) in averages.items()},
        "weights_left": [0.9, 0.9],
        "tasks": [{}, {}],
        "cost": {"total": {"seconds": 90.0}},
    }


@pytest.mark.parametrize(("gain", "ours", "other"), BY_CHANCE)
def test_difference_within_a_spread_may_be_chance(gain: float, ours: float, other: float) -> None:
    assert "may be chance" in phases.words(pruned(gain, ours, other))
    assert "may be chance" in shared_report.words(shared(gain, ours, other))


def test_difference_beyond_both_spreads_is_not_chance() -> None:
    assert "chance" not in phases.words(pruned(0.03, 0.02, 0.02))
    assert "chance" not in shared_report.words(shared(0.03, 0.02, 0.02))


def test_summary_of_sharing_has_both_baselines_and_the_cost() -> None:
    text = shared_report.words(shared(0.03, 0.02, 0.02))
    assert "The majority class has 0.2000." in text
    assert text.endswith(
        "On test the encoder with shared tickets is better than the linear model of each task: "
        "+0.010 in the mean score (without an interval). The whole job took 1.5 minutes of training."
    )
    worse = shared_report.words(shared(0.01, 0.02, 0.02))
    assert "is not better than the linear model of each task: -0.010" in worse


def test_single_seed_cannot_exclude_chance() -> None:
    # A single seed has no spread.
    assert "at least three" in phases.words(pruned(0.03, None, None))
    assert "at least three" in shared_report.words(shared(0.03, None, None))
