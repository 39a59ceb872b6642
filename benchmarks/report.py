"""Print each figure as one JSON line on standard output, and remarks on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Literal


def figure(
    name: str,
    runs: Sequence[float],
    *,
    unit: str,
    goal: float | None = None,
    better: Literal["higher", "lower"] = "higher",
    reason: str | None = None,
) -> dict[str, object]:
    """Print and return `{"name","value","goal","better","unit","runs"}`; the value is the median of the runs.

    Without runs the value is null and `reason` says why. Raises ValueError for a run that is not finite, and for
    missing runs without a reason.
    """
    if not runs and not reason:
        raise ValueError(f"'{name}' has no runs. Give a reason.")
    if not all(map(math.isfinite, runs)):
        raise ValueError(f"'{name}' has a run that is not finite: {list(runs)}.")
    line: dict[str, object] = {
        "name": name,
        "value": _round(median(runs)) if runs else None,
        "goal": goal,
        "better": better,
        "unit": unit,
        "runs": [_round(run) for run in runs],
    }
    if not runs:
        line["reason"] = reason
    print(json.dumps(line), flush=True)
    return line


def remark(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return `ours` divided by `theirs`, run by run. If the runs alternate, changes of the machine's speed cancel."""
    return [our_run / their_run for our_run, their_run in zip(ours, theirs, strict=True)]


def alternate(rivals: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run each rival once in a warm-up turn and in each of `repeats` turns. Return name → results after the warm-up."""
    for run in rivals.values():
        run()
    results: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, run in rivals.items():
            results[name].append(run())
    return results


def _round(value: float) -> float:
    """Round to six significant digits. No clock is more precise."""
    return float(f"{value:.6g}")
