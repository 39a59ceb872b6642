"""A job's report as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tlm_client.console import say, table
from tlm_client.display import duration
from tlm_client.models import Estimate
from tlm_core.tasks.metrics import scores_shown


def mean_and_spread(report: Mapping[str, Any], score: str) -> str:
    """`0.612 ± 0.008` on test, without a spread if there was one seed; `n/a` for what could not be computed."""
    mean, spread = test_value(report, "mean", score), test_value(report, "spread", score)
    if mean is None:
        return "n/a"
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} ± {spread:.3f}"


def test_value(report: Mapping[str, Any], part: str, score: str) -> float | None:
    """A score on test; part: mean, spread or majority."""
    value = report[part]["test"].get(score)
    return None if value is None else float(value)


def total_cost(report: Mapping[str, Any], what: str) -> float | None:
    """`flops`, `tokens`, `seconds` or `gpu_seconds` of all stages and seeds; None if it is not known."""
    value = report["cost"].get("total", {}).get(what)
    return None if value is None else float(value)


def say_report(report: Mapping[str, Any]) -> None:
    """Scores on test, beside the majority baseline, and what they cost; a study's own words where it has them."""
    if "words" in report:
        say(str(report["words"]))
        say(f"cost: {cost_line(report)}")
        return
    shown = scores_shown(report["metric"])
    rows = [(s, mean_and_spread(report, s), number(test_value(report, "majority", s))) for s in shown]
    seeds = len(report["seeds"])
    table(("score on test", f"mean of {seeds} seed{'s' if seeds != 1 else ''}", "majority class"), rows)
    say(f"cost: {cost_line(report)}")


def say_estimate(told: Estimate) -> None:
    """Each stage with where its seconds are from, and the whole."""
    rows = [(s.stage, _time(s.seconds), _amount(s.flops), s.basis, s.reason) for s in told.stages]
    table(("stage", "time", "FLOPs", "basis", "reason"), rows)
    passages = "unknown" if told.passages is None else f"{told.passages:,} of at most {told.passages_at_most or 0:,}"
    gpu = "unknown" if told.gpu_hours is None else f"{told.gpu_hours:.2f}"
    say(f"time {_time(told.seconds)}, FLOPs {_amount(told.flops)}, passages {passages}, GPU-hours {gpu}")
    say(f"memory of a worker {_bytes(told.memory_bytes)}, disk {_bytes(told.disk_bytes)}")
    for figure, reason in told.reasons.items():
        say(f"{figure}: {reason}")


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else duration(seconds)


def _amount(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2e}"


def _bytes(value: int | None) -> str:
    return "unknown" if value is None else f"{value / 1e6:,.0f} MB"


def cost_line(report: Mapping[str, Any]) -> str:
    flops, tokens, seconds = (total_cost(report, what) for what in ("flops", "tokens", "seconds"))
    parts = [
        "FLOPs unknown" if flops is None else f"{flops:.2e} FLOPs",
        "tokens unknown" if tokens is None else f"{tokens:,.0f} tokens",
        "time unknown" if seconds is None else f"{seconds:,.0f} s",
    ]
    return ", ".join(parts)


def number(value: float | None) -> str:
    """A score with three digits."""
    return "n/a" if value is None else f"{value:.3f}"
