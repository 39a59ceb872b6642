"""What is wrong with a field that pydantic rejects, in the words of this project."""

from __future__ import annotations

import re

from pydantic_core import ErrorDetails

from tlm_core.wording import counted


def message_of(error: ErrorDetails) -> str:
    """Return what one error of `ValidationError.errors()` says after the name of its field."""
    kind, values = error["type"], error.get("ctx", {})
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return "is not a known field"
        case "too_long" | "string_too_long":
            return f"must have at most {_amount(values['max_length'], kind)}"
        case "too_short" | "string_too_short":
            return f"must have at least {_amount(values['min_length'], kind)}"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    # pydantic names Python's types; a client sends JSON.
    return re.sub(r"a valid dictionary.*", "an object", re.sub(r"a valid (tuple|list)", "a list", message))


def _amount(count: int, kind: str) -> str:
    noun = "character" if kind.startswith("string") else "item"
    return counted(count, noun)
