"""Format values for pages: numbers, times, sizes, scores. An unknown value becomes a dash."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime

from markupsafe import Markup, escape

from tlm_core.evaluation.summary import averaged_seeds, model_title, training_time
from tlm_core.tasks.metrics import METRICS, scores_shown
from tlm_core.wording import counted, interval_in_words, value_in_words

NONE = "–"
COLORS = 8  # in the style sheet

# The search begins at the start of a word, because a search from each letter needs quadratic time.
_UNBROKEN = re.compile(r"(?<!\w)\w+-F1|(?<!\S)\S+ \\(?=\n)")


def count(value: float | None) -> str:
    """Format a whole number, such as 1,234,567."""
    return NONE if value is None else f"{value:,.0f}"


def power(value: float | None) -> str:
    """Format a large number as 4.1 × 10¹³. The exponent is in <sup>, because few fonts have all superscripts."""
    if value is None:
        return NONE
    if abs(value) < 1e5:
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return Markup("{} × 10<sup>{}</sup>").format(mantissa, int(exponent))


def about(value: float | None) -> str:
    """Format a number rounded to two significant digits: 79,000 for 78,912."""
    return NONE if value is None else f"{float(f'{value:.1e}'):,.0f}" if value >= 10 else f"{value:.2g}"


def metric(name: str) -> str:
    """Format the name of a metric: macro-F1 for macro_f1. Ticket sharing stores its mean over the tasks as `value`."""
    return "mean of tasks" if name == "value" else name.replace("_f1", "-F1")


def words(name: str) -> str:
    """Return an identifier of a stage, a kind or a field as words: self train for self_train."""
    return name.replace("_", " ")


def scores_of(metric: str) -> tuple[str, ...]:
    """Return the names of the scores that pages show for a metric, without scores that always equal another score."""
    return tuple(name for name in scores_shown(metric) if name not in METRICS or METRICS[name].same_as is None)


def color(number: int) -> str:
    """Return the CSS class of a color: c0 to c7 for 0 to 7, then c0 again for 8."""
    return f"c{number % COLORS}"


def colors(names: Iterable[str]) -> dict[str, str]:
    """Return label → CSS class of its color. Equal sets of labels have equal colors on every page."""
    return {name: color(number) for number, name in enumerate(sorted(names))}


def score(value: float | None, spread: float | None = None) -> str:
    """Format a score with three decimals, and with the spread if it is known: 0.812 ± 0.004."""
    if value is None:
        return NONE
    return f"{value:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


def least(confidence: float) -> str:
    """Format a minimum confidence with six decimals. Round down, because rounding up would exclude its own row."""
    return f"{math.floor(confidence * 1e6) / 1e6:.6f}"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"


def duration(seconds: float | None) -> str:
    """Format a duration in its two largest units: 45 s, 4 min 12 s, 3 h 5 min, 2 d 4 h."""
    if seconds is None:
        return NONE
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{whole} s"


def ago(at: float | None, now: float) -> str:
    """Format the elapsed time in one unit: just now, 5 min ago, 3 d ago."""
    if at is None:
        return NONE
    passed = max(0, round(now - at))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if passed >= size:
            return f"{passed // size} {unit} ago"
    return f"{passed} s ago" if passed >= 5 else "just now"


def moment(at: float | None) -> str:
    """Format a date and time in UTC: 2026-11-23 12:11:34 UTC. at: Unix seconds."""
    return NONE if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(at: float) -> str:
    """Format the time of day in UTC: 12:11:34. at: Unix seconds."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def size(value: float | None) -> str:
    """Format a number of bytes: 512 B, 1.5 kB, 2.0 GB."""
    if value is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"


def plain(value: object) -> str:
    """Format a value of a recipe or an event: "yes" for True, "0, 1" for [0, 1], "50,000" for 50000."""
    match value:
        case None:
            return NONE
        case bool():
            return "yes" if value else "no"
        case float() if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
            return f"{value:.3g}"
        case float():
            return f"{value:g}"
        case int() if abs(value) >= 10_000:
            return f"{value:,}"
        case Mapping():
            return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items()) or NONE
        case list() | tuple():
            nested = any(isinstance(inner, Mapping | list | tuple) for inner in value)
            return ("; " if nested else ", ").join(map(plain, value)) or NONE
    return str(value)


def facts(data: Mapping[str, object]) -> str:
    """Format the data of an event: "node joint.s0 · step 200". Omit ids, details, and the stage of a node."""
    hidden = {"artifact", "details", "digest", "owner", "submission"} | ({"stage"} if "node" in data else set())
    hidden |= {"code", "facts", "retryable"} if "message" in data else set()
    return " · ".join(f"{key} {plain(value)}" for key, value in data.items() if key not in hidden and value is not None)


def marked(text: str, words: Collection[str], *, whole: bool = False) -> Markup:
    """Return the escaped text with `words` in <mark> elements, ignoring case. whole: mark only whole words."""
    if not words:
        return escape(text)
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    parts = re.split(rf"\b({pattern})\b" if whole else f"({pattern})", text, flags=re.IGNORECASE)
    return Markup("").join(Markup("<mark>{}</mark>").format(part) if n % 2 else part for n, part in enumerate(parts))


def breakable(label: object) -> Markup:
    """Return the escaped label, which browsers may break after each `/`, `_` and `-`."""
    return Markup("<wbr>").join(re.split(r"(?<=\w[/_-])(?=.)", str(label)))


def unbroken(text: str) -> Markup:
    """Return the escaped text with HTML elements in which browsers break no line.

    An element contains a name such as macro-F1, or the last word of a code line and the backslash after this word.
    """
    return Markup(_UNBROKEN.sub(r'<span class="unbroken">\g<0></span>', str(escape(text))))


FILTERS = {
    "breakable": breakable,
    "unbroken": unbroken,
    "marked": marked,
    "color": color,
    "count": count,
    "power": power,
    "about": about,
    "metric": metric,
    "model": model_title,
    "averaged_seeds": averaged_seeds,
    "training_time": training_time,
    "words": words,
    "score": score,
    "value": value_in_words,
    "least": least,
    "percent": percent,
    "counted": counted,
    "duration": duration,
    "ago": ago,
    "interval": interval_in_words,
    "moment": moment,
    "clock": clock,
    "size": size,
    "plain": plain,
}
