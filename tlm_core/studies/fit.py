"""Power laws of learning curves, and the crossing point of two curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Points = Sequence[tuple[float, Sequence[float]]]

EXPONENTS = np.geomspace(0.01, 4.0, 1000)
REPEATS = 500
SEARCHED = 1000  # crossings are searched up to SEARCHED times the largest measured size


@dataclass(frozen=True)
class PowerLaw:
    """error(n) = a * n ** -b + c, with a >= 0 and c >= 0."""

    a: float
    b: float
    c: float

    def __call__(self, n: Floats) -> Floats:
        return self.a * np.asarray(n, dtype=np.float64) ** -self.b + self.c


def fit(n: Sequence[float], errors: Sequence[float]) -> PowerLaw:
    """Return the power law with the least squared deviation from the errors at the sizes `n`.

    Raises ValueError for fewer than three different sizes.
    """
    size, error = np.asarray(n, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if len(np.unique(size)) < 3:
        raise ValueError("A power law needs at least three different sizes.")
    return _best_laws(size, error[None])[0]


def _best_laws(size: Floats, errors: Floats) -> list[PowerLaw]:
    """Return the law with the least squared error for each row of `errors`, [R, sizes]. size: [sizes]."""
    x = size ** -EXPONENTS[:, None]
    centered = x - x.mean(axis=1, keepdims=True)
    a = centered @ (errors - errors.mean(axis=1, keepdims=True)).T / (centered**2).sum(axis=1, keepdims=True)
    c = errors.mean(axis=1) - a * x.mean(axis=1, keepdims=True)
    # Where the free solution has a negative a or c, one of them is 0.
    through_zero = np.maximum(0.0, x @ errors.T / (x**2).sum(axis=1, keepdims=True))
    a, c = (
        np.where(c < 0, through_zero, np.maximum(0.0, a)),
        np.where(c < 0, 0.0, np.where(a < 0, np.maximum(0.0, errors.mean(axis=1)), c)),
    )
    losses = ((a[..., None] * x[:, None] + c[..., None] - errors) ** 2).sum(axis=-1)
    best = losses.argmin(axis=0)
    return [PowerLaw(float(a[e, r]), float(EXPONENTS[e]), float(c[e, r])) for r, e in enumerate(best)]


def crossing(small: PowerLaw, large: PowerLaw, margin: float, low: float, high: float) -> float | None:
    """Return the smallest n in [low, high] from which `small(n) - large(n)` stays below `margin` up to `high`.

    Return None if the difference is not below `margin` at `high`. So equal curves do not cross with the margin 0.
    """
    n = np.geomspace(low, high, 4000)
    close = small(n) - large(n) < margin
    if not close[-1]:
        return None
    apart = np.flatnonzero(~close)
    return float(n[apart[-1] + 1]) if len(apart) else float(low)


def compare(small: Points, large: Points, *, margin: float) -> dict[str, Any]:
    """Return where the power laws of two curves cross. small, large: (number of labels, error of each seed) by size.

    The keys of the result are `margin` and the following. labels: the number of labels at the `crossing`, or None with
    a `reason`. note: a remark on `labels`, if necessary. interval: [low, high], the middle 90 % of the crossings in a
    bootstrap over seeds. An end beyond the searched range is None. With one seed, the interval is None with an
    `interval_reason`. never_within: the share of bootstrap draws without a crossing.
    """
    result: dict[str, Any] = {"margin": margin, "labels": None, "interval": None}
    if len(small) < 3 or len(large) < 3:
        return {**result, "reason": "fewer than three sizes remain, so no power law can be fitted"}
    sizes = [n for n, _ in small]
    low, high = min(sizes), max(sizes) * SEARCHED
    first, second = (fit([n for n, _ in curve], [float(np.mean(e)) for _, e in curve]) for curve in (small, large))
    result["labels"] = crossing(first, second, margin, low, high)
    if result["labels"] is None:
        differ = f"differ by more than {margin:g}" if margin else "show no lower error"
        result["reason"] = f"the fitted curves {differ} even at {high:,.0f} labels"
    elif result["labels"] == low:
        result["note"] = f"at or below the smallest measured size, {low:,.0f} labels"
    elif result["labels"] > max(sizes):
        result["note"] = f"an extrapolation beyond the {max(sizes):,.0f} labels that were measured"
    if min(len(errors) for curve in (small, large) for _, errors in curve) < 2:
        return {**result, "interval_reason": "one seed has no spread; use several seeds"}
    crossings = [
        crossing(first, second, margin, low, high) for first, second in zip(*_bootstrap((small, large)), strict=True)
    ]
    counts = [np.inf if count is None else count for count in crossings]
    ends = np.quantile(counts, (0.05, 0.95), method="nearest")
    result["interval"] = [None if np.isinf(end) else float(end) for end in ends]
    result["never_within"] = float(np.mean(np.isinf(counts)))
    return result


def _bootstrap(curves: Sequence[Points]) -> list[list[PowerLaw]]:
    """Return REPEATS power laws for each curve. Each law is fitted to seeds drawn with replacement at each size."""
    random = np.random.default_rng(0)
    draws = [
        [[float(random.choice(errors, len(errors)).mean()) for _, errors in curve] for curve in curves]
        for _ in range(REPEATS)
    ]
    return [
        _best_laws(np.array([n for n, _ in curve], dtype=np.float64), np.array(means))
        for curve, means in zip(curves, zip(*draws, strict=True), strict=True)
    ]
