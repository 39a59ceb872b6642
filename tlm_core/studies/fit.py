"""Power laws through learning curves, and where one curve comes close to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

EXPONENTS = np.geomspace(0.01, 4.0, 400)
REPEATS = 500
FARTHEST = 1000  # times the largest size that was tried


@dataclass(frozen=True)
class PowerLaw:
    """error(n) = a * n ** -b + c, with a >= 0 and c >= 0."""

    a: float
    b: float
    c: float

    def __call__(self, n: Floats) -> Floats:
        return self.a * np.asarray(n, dtype=np.float64) ** -self.b + self.c


def fit(n: Sequence[float], errors: Sequence[float]) -> PowerLaw:
    """Least squares. For each exponent the rest is linear, so the best one is found by search, with no start value.

    Raises ValueError for fewer than three different n, which leave a curve with three unknowns open.
    """
    size, error = np.asarray(n, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if len(np.unique(size)) < 3:
        raise ValueError("a power law has three unknowns: at least three sizes are needed")
    grid, law, loss = EXPONENTS, PowerLaw(0.0, 1.0, 0.0), np.inf
    for _ in range(4):
        best = 0
        for index, b in enumerate(grid):
            a, c = _linear(size**-b, error)
            residual = float(((a * size**-b + c - error) ** 2).sum())
            if residual < loss:
                law, loss, best = PowerLaw(a, float(b), c), residual, index
        low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
        grid = np.linspace(low, high, 40)
    return law


def _linear(x: Floats, y: Floats) -> tuple[float, float]:
    """Least squares y = a x + c with neither below zero."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    a = float(centred @ (y - y.mean())) / spread if spread > 0 else 0.0
    c = float(y.mean() - a * x.mean())
    if a >= 0 and c >= 0:
        return a, c
    if c < 0:
        return max(0.0, float(x @ y) / float(x @ x)), 0.0
    return 0.0, max(0.0, float(y.mean()))


def crossing(small: PowerLaw, large: PowerLaw, margin: float, low: float, high: float) -> float | None:
    """The smallest n in [low, high] from which on `small` errs at most `margin` more than `large`; None if nowhere."""
    n = np.geomspace(low, high, 4000)
    close = small(n) - large(n) <= margin
    if not close[-1]:
        return None
    open_ends = np.flatnonzero(~close)
    return float(n[open_ends[-1] + 1]) if len(open_ends) else float(low)


def compare(
    small: Sequence[tuple[float, Sequence[float]]],
    large: Sequence[tuple[float, Sequence[float]]],
    *,
    margin: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Number of labels from which the small model is within `margin` of the large one, with a bootstrap interval.

    small, large: (n, errors of each seed). The interval is the middle 90 % over draws of seeds at each size; an end
    that is None lies beyond what was looked at. What cannot be told is None, with the reason.
    """
    result: dict[str, Any] = {"margin": margin, "labels": None, "interval": None}
    sizes = [n for n, _ in small]
    if len(sizes) < 3 or len(large) < 3:
        return {**result, "reason": "fewer than three sizes are left, so no power law can be fitted"}
    low, high = min(sizes), max(sizes) * FARTHEST
    first, second = (fit([n for n, _ in curve], [float(np.mean(e)) for _, e in curve]) for curve in (small, large))
    result["labels"] = crossing(first, second, margin, low, high)
    if result["labels"] is None:
        result["reason"] = f"the fitted curves do not come within {margin:g} below {high:,.0f} labels"
    elif result["labels"] > max(sizes):
        result["note"] = f"beyond the {max(sizes):,.0f} labels that were tried: an extrapolation"
    if min(len(errors) for curve in (small, large) for _, errors in curve) < 2:
        return {**result, "interval_reason": "one seed has no spread; give more seeds"}
    random = np.random.default_rng(seed)
    found = []
    for _ in range(REPEATS):
        drawn = [[float(random.choice(errors, len(errors)).mean()) for _, errors in curve] for curve in (small, large)]
        first, second = (_quick([n for n, _ in c], means) for c, means in zip((small, large), drawn, strict=True))
        point = crossing(first, second, margin, low, high)
        found.append(np.inf if point is None else point)
    ends = np.quantile(found, (0.05, 0.95), method="nearest")
    result["interval"] = [None if np.isinf(end) else float(end) for end in ends]
    result["never_within"] = float(np.mean(np.isinf(found)))
    return result


def _quick(n: Sequence[float], errors: Sequence[float]) -> PowerLaw:
    """`fit` on a coarse grid of exponents, at once: enough for an interval."""
    exponents = EXPONENTS[::8]
    size, error = np.asarray(n, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    laws = [PowerLaw(a, float(b), c) for b in exponents for a, c in [_linear(size**-b, error)]]
    losses = [float(((law(size) - error) ** 2).sum()) for law in laws]
    return laws[int(np.argmin(losses))]
