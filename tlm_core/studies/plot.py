"""Line plots with spread as SVG text, written directly: two kinds of axis and a legend need no plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 40, 60
LONGEST = 18
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by all eyes


@dataclass(frozen=True)
class Curve:
    """One line: (x, mean, spread or None) points in the order of x. drawn: False for points without a line."""

    name: str
    points: Sequence[tuple[float, float, float | None]]
    drawn: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool
    begin: float
    end: float

    def at(self, value: float) -> float:
        low, high, here = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        share = (here - low) / (high - low) if high > low else 0.5
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [factor * 10.0**power for power in powers for factor in (1, 3)]
            return [value for value in found if self.low <= value <= self.high] or [self.low, self.high]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4 or 1))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= 6)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def write_plot(path: Path, curves: Sequence[Curve], **how: Any) -> None:
    """What `plot` draws, as a file; none where no score is known, so that there is no point."""
    if any(curve.points for curve in curves):
        path.write_text(plot(curves, **how), encoding="utf-8")


def plot(curves: Sequence[Curve], *, title: str, x: str, y: str, log_x: bool = False, names: Sequence[str] = ()) -> str:
    """An SVG document. Raises ValueError without a point, and for x of 0 or less on a logarithmic axis.

    names: where given, x counts among them: they stand below the axis in place of numbers.
    """
    points = [point for curve in curves for point in curve.points]
    if not points:
        raise ValueError("there is no point to draw")
    if log_x and min(point[0] for point in points) <= 0:
        raise ValueError("a logarithmic axis has no place for 0 or less")
    lows = [mean - (spread or 0.0) for _, mean, spread in points]
    highs = [mean + (spread or 0.0) for _, mean, spread in points]
    margin = 0.05 * (max(highs) - min(lows)) or 0.05
    ends = (-0.5, len(names) - 0.5) if names else (min(p[0] for p in points), max(p[0] for p in points))
    across = _Axis(*ends, log_x, LEFT, WIDTH - RIGHT)
    up = _Axis(min(lows) - margin, max(highs) + margin, False, HEIGHT - BOTTOM, TOP)
    body = [*_frame(across, up, title, x, y, names)]
    for number, curve in enumerate(curves):
        body += _curve(curve, COLOURS[number % len(COLOURS)], across.at, up.at)
        body += _legend(curve, COLOURS[number % len(COLOURS)], TOP + 10 + 20 * number)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
    return "\n".join(
        [f'{head} font-size="12">', '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>", ""]
    )


def _frame(across: _Axis, up: _Axis, title: str, x: str, y: str, names: Sequence[str]) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    found = [f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>']
    for value in up.ticks():
        place = up.at(value)
        found.append(f'<path d="M{LEFT} {place:.1f}H{right}" stroke="#ddd"/>')
        found.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in range(len(names)) if names else across.ticks():
        place = across.at(value)
        found.append(f'<path d="M{place:.1f} {bottom}v5" stroke="#333"/>')
        found.append(_name(names[int(value)], place) if names else _number(value, place))
    found.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#333"/>')
    middle = (LEFT + right) / 2
    found.append(f'<text x="{middle:.0f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x)}</text>')
    turn = f'transform="translate(18 {(TOP + bottom) / 2:.0f}) rotate(-90)"'
    found.append(f'<text {turn} text-anchor="middle">{escape(y)}</text>')
    return found


def _number(value: float, place: float) -> str:
    return f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:,.4g}</text>'


def _name(name: str, place: float) -> str:
    """Slanted, so that long names have room; of too long a one the end is kept, in which ids and paths differ."""
    shown = name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
    turn = f'transform="translate({place - 8:.1f} {HEIGHT - BOTTOM + 16}) rotate(20)"'
    return f"<text {turn}>{escape(shown)}</text>"


def _curve(curve: Curve, colour: str, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> list[str]:
    found = []
    if curve.drawn and len(curve.points) > 1:
        path = " ".join(f"{at_x(x):.1f},{at_y(mean):.1f}" for x, mean, _ in curve.points)
        dashes = ' stroke-dasharray="5 4"' if curve.dashed else ""
        found.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
    if curve.dashed:
        return found
    for x, mean, spread in curve.points:
        if spread:
            low, high = at_y(mean - spread), at_y(mean + spread)
            found.append(f'<path d="M{at_x(x):.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>')
        found.append(f'<circle cx="{at_x(x):.1f}" cy="{at_y(mean):.1f}" r="3.5" fill="{colour}"/>')
    return found


def _legend(curve: Curve, colour: str, y: int) -> list[str]:
    x = WIDTH - RIGHT + 14
    dashes = ' stroke-dasharray="5 4"' if curve.dashed else ""
    return [
        f'<path d="M{x} {y}h22" stroke="{colour}" stroke-width="2"{dashes}/>',
        f'<text x="{x + 28}" y="{y + 4}">{escape(curve.name)}</text>',
    ]
