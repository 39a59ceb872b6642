"""Texts for users: counts with nouns, intervals, suggestions of similar names, and errors about fields."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def counted(count: float, noun: str) -> str:
    """Return the count with its noun: `1 row`, `2 rows` or `1,200 rows`."""
    return f"{count:,g} {noun}" if count == 1 else f"{count:,g} {noun}s"


def numbered_rows(rows: Sequence[int]) -> str:
    """Return `row 19` or `rows 3, 19`. rows: at least one number."""
    return f"{'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows))}"


def interval_in_words(low: float, high: float) -> str:
    """Return `95 % interval +0.004 to +0.038`."""
    return f"95 % interval {low:+.3f} to {high:+.3f}"


def value_in_words(value: float) -> str:
    """Return a regression target with six significant digits or, from 1e6, as an integer: `0.25`, `100000009`."""
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"


def data_in_words(dataset: str, corpus: str | None) -> str:
    """Return `reviews on docs`, or `reviews` without a corpus."""
    return f"{dataset} on {corpus}" if corpus else dataset


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name most similar to `name`, ignoring case, or None if all similarities are below `cutoff`."""
    names = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=cutoff)
    return names[near[0]] if near else None


def suggestion(name: str, known: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """Return `Did you mean 'reviews'?` with the result of `nearest`, or `otherwise` if there is no similar name."""
    near = nearest(name, known, cutoff)
    return f"Did you mean '{near}'?" if near else otherwise


def message_of(error: ErrorDetails) -> str:
    """Return the message that follows a field's name: "is required". error: an entry of `ValidationError.errors()`."""
    kind, values = error["type"], error.get("ctx", {})
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden" | "unexpected_keyword_argument":
            known, name = values.get("known", ()), str(error["loc"][-1])
            hint = suggestion(name, known, f"Valid fields: {', '.join(known)}.") if known else ""
            return f"is not a known field. {hint}".removesuffix(". ")
        case "too_long" | "string_too_long":
            return f"must have at most {_amount(values['max_length'], kind)}"
        case "too_short" | "string_too_short":
            return f"must have at least {_amount(values['min_length'], kind)}"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if kind == "literal_error" and (near := nearest(str(error["input"]), re.findall("'([^']+)'", values["expected"]))):
        message += f" (the nearest is '{near}')"
    message = re.sub(r", unable to (parse|interpret) .*", "", message)
    # pydantic names Python's types; a client sends JSON.
    return re.sub(r"a valid dictionary.*", "an object", re.sub(r"a valid (tuple|list)", "a list", message))


def _amount(count: int, kind: str) -> str:
    return counted(count, "character" if kind.startswith("string") else "item")
