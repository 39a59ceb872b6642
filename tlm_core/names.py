"""Names and ids in requests: the patterns that they match, and new ids."""

from __future__ import annotations

import re
import secrets
import time

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"  # names of datasets and corpora
ALIAS = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}@[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"  # names of models
NOT_BLANK = r"\S"
# Pattern → the text that it expects, in words.
FORMS = {ALIAS: "NAME@NAME, such as reviews@production", NOT_BLANK: "a text that is not blank"}
HUB = "hub:"
# An owner or a repository of the hub. The pattern excludes paths such as `../x`, which lead out of a folder.
HUB_NAME = r"[A-Za-z0-9][\w.-]*"
_CONTROL = r"\x00-\x1f\x7f"  # characters that no path and no revision has
# A model of the hub in a recipe; the oldest models have no owner.
MODEL = rf"{HUB}({HUB_NAME}/)?{HUB_NAME}(@[^\s{_CONTROL}@:]+)?"
MODEL_FOLDER = rf"/[^{_CONTROL}]+"
ID_DIGITS = r"[0-9a-z]{19}"  # end of each id that `new_id` returns
JOB_ID = rf"job_{ID_DIGITS}"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str, now: float | None = None) -> str:
    """Return a new id such as `job_01h…`. Ids sort by time and end in 50 random bits. now: Unix seconds."""
    value = int((time.time() if now is None else now) * 1000) << 50 | secrets.randbits(50)
    digits = ""
    for _ in range(19):
        value, digit = divmod(value, 32)
        digits = _ALPHABET[digit] + digits
    return f"{prefix}_{digits}"


def is_job_id(text: str) -> bool:
    """Return whether `text` is a complete id of a job."""
    return re.fullmatch(JOB_ID, text) is not None
