"""How every benchmark of the project prints a figure: one JSON line on standard output, remarks on standard error."""

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

    Without runs the value is null and `reason` says why. goal: what is claimed or wanted; None for a figure that is
    only told. Raises ValueError for a run that is not a number, and for neither runs nor a reason.
    """
    if not runs and not reason:
        raise ValueError(f"'{name}' has no runs; say why")
    if not all(map(math.isfinite, runs)):
        raise ValueError(f"a run of '{name}' is not a number: {list(runs)}")
    line: dict[str, object] = {
        "name": name,
        "value": _short(median(runs)) if runs else None,
        "goal": goal,
        "better": better,
        "unit": unit,
        "runs": [_short(run) for run in runs],
    }
    if not runs:
        line["reason"] = reason
    print(json.dumps(line), flush=True)
    return line


def remark(text: str) -> None:
    """One line of what is going on, on standard error, so that standard output stays JSON."""
    print(text, file=sys.stderr, flush=True)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, run by run: what ran side by side is compared, so a machine that slows down slows both."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def alternate(rivals: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run each rival `repeats` times, taking turns; what each returned, by name. One turn beforehand is thrown away."""
    for run in rivals.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, run in rivals.items():
            found[name].append(run())
    return found


def _short(value: float) -> float:
    """Six significant digits; more would claim what no clock gives."""
    return float(f"{value:.6g}")
