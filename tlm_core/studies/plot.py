"""Line plots with spread as SVG text, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 40, 60
LONGEST_NAME = 18
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # color-blind safe


@dataclass(frozen=True)
class Curve:
    """A curve of a plot."""

    name: str
    points: Sequence[tuple[float, float, float | None]]  # (x, mean, spread or None) in the order of x
    line: bool = True  # whether a line connects the points
    dashed: bool = False  # True: the line is dashed, and the plot omits the points

    def style(self, color: str) -> str:
        dashes = ' stroke-dasharray="5 4"' if self.dashed else ""
        return f'fill="none" stroke="{color}" stroke-width="2"{dashes}'


@dataclass(frozen=True)
class _Axis:
    """An axis with the values from `low` to `high` at the pixels from `begin` to `end`."""

    low: float
    high: float
    log: bool
    begin: float
    end: float

    def at(self, value: float) -> float:
        """Return the pixel coordinate of a value."""
        low, high, position = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        share = (position - low) / (high - low) if high > low else 0.5
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [factor * 10.0**power for power in powers for factor in (1, 3)]
            return [value for value in values if self.low <= value <= self.high] or [self.low, self.high]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4 or 1))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= 6)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def plot(curves: Sequence[Curve], *, title: str, x: str, y: str, log_x: bool = False, names: Sequence[str] = ()) -> str:
    """Return an SVG document, or an empty string if the curves have no points.

    x, y: titles of the axes. log_x: use a logarithmic x-axis. names: labels at x = 0, 1, …, which replace the numbers.
    Raises ValueError for a logarithmic x-axis if a point has an x of 0 or less.
    """
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    if log_x and min(point[0] for point in points) <= 0:
        raise ValueError("A logarithmic x-axis needs points with x above 0.")
    lows = [mean - (spread or 0.0) for _, mean, spread in points]
    highs = [mean + (spread or 0.0) for _, mean, spread in points]
    margin = 0.05 * (max(highs) - min(lows)) or 0.05
    ends = (-0.5, len(names) - 0.5) if names else (min(p[0] for p in points), max(p[0] for p in points))
    across = _Axis(*ends, log_x, LEFT, WIDTH - RIGHT)
    up = _Axis(min(lows) - margin, max(highs) + margin, False, HEIGHT - BOTTOM, TOP)
    body = _frame(across, up, title, x, y, names)
    for number, curve in enumerate(curves):
        color = COLORS[number % len(COLORS)]
        body += [*_curve(curve, color, across, up), *_legend(curve, color, TOP + 10 + 20 * number)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
    return "\n".join(
        [f'{head} font-size="12">', '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>", ""]
    )


def _frame(across: _Axis, up: _Axis, title: str, x: str, y: str, names: Sequence[str]) -> list[str]:
    """Return the SVG elements of the title, the grid, and the axes with ticks and labels."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    lines = [f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>']
    for value in up.ticks():
        place = up.at(value)
        lines.append(f'<path d="M{LEFT} {place:.1f}H{right}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in range(len(names)) if names else across.ticks():
        place = across.at(value)
        lines.append(f'<path d="M{place:.1f} {bottom}v5" stroke="#333"/>')
        if names:
            lines.append(_name(names[int(value)], place))
        else:
            lines.append(f'<text x="{place:.1f}" y="{bottom + 18}" text-anchor="middle">{value:,.4g}</text>')
    lines.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#333"/>')
    lines.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x)}</text>')
    turn = f'transform="translate(18 {(TOP + bottom) / 2:.0f}) rotate(-90)"'
    return [*lines, f'<text {turn} text-anchor="middle">{escape(y)}</text>']


def _name(name: str, place: float) -> str:
    """Return a slanted label at pixel column `place`. A long name loses its start, because ids differ at their end."""
    shown = name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
    turn = f'transform="translate({place - 8:.1f} {HEIGHT - BOTTOM + 16}) rotate(20)"'
    return f"<text {turn}>{escape(shown)}</text>"


def _curve(curve: Curve, color: str, across: _Axis, up: _Axis) -> list[str]:
    lines = []
    if curve.line and len(curve.points) > 1:
        path = " ".join(f"{across.at(x):.1f},{up.at(mean):.1f}" for x, mean, _ in curve.points)
        lines.append(f'<polyline points="{path}" {curve.style(color)}/>')
    for x, mean, spread in () if curve.dashed else curve.points:
        if spread:
            low, high = up.at(mean - spread), up.at(mean + spread)
            lines.append(f'<path d="M{across.at(x):.1f} {low:.1f}V{high:.1f}" stroke="{color}"/>')
        lines.append(f'<circle cx="{across.at(x):.1f}" cy="{up.at(mean):.1f}" r="3.5" fill="{color}"/>')
    return lines


def _legend(curve: Curve, color: str, y: int) -> list[str]:
    x = WIDTH - RIGHT + 14
    return [
        f'<path d="M{x} {y}h22" {curve.style(color)}/>',
        f'<text x="{x + 28}" y="{y + 4}">{escape(curve.name)}</text>',
    ]
