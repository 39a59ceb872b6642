"""Who is signed in: a cookie that only the holder of the API token could have got, and requests of our own pages only.

The cookie holds when it ends and a signature made with a key drawn from the token. Nothing is stored: another token
makes every session void.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

COOKIE = "tlm_session"
LIFETIME_SECONDS = 7 * 86_400


def issue(token: str, now: float) -> str:
    """A session that begins now (Unix seconds), as the value of its cookie."""
    ends = str(int(now) + LIFETIME_SECONDS)
    return f"{ends}.{_signature(token, ends)}"


def is_valid(value: str, token: str, now: float) -> bool:
    """Whether a cookie's value was issued for this token and has not ended."""
    ends, _, signature = value.partition(".")
    genuine = hmac.compare_digest(signature.encode(), _signature(token, ends).encode())
    return genuine and int(ends) > now


def is_token(given: str, token: str) -> bool:
    """Whether what was typed is the API token."""
    return hmac.compare_digest(given.strip().encode(), token.encode())


def is_own(headers: Mapping[str, str]) -> bool:
    """Whether a request that writes comes from a page of ours.

    Browsers tell the page's origin with each POST; what comes without one, or from another host, is refused.
    """
    origin = headers.get("origin")
    if origin:
        return bool(headers.get("host")) and urlsplit(origin).netloc.lower() == headers["host"].lower()
    return headers.get("sec-fetch-site") == "same-origin"


def local_path(path: str) -> str:
    """Where to go after signing in: a page of the dashboard, whatever the address said."""
    return path if path.startswith("/ui/") and "\\" not in path and "//" not in path else "/ui/jobs"


def _signature(token: str, ends: str) -> str:
    key = hashlib.sha256(b"dashboard session\0" + token.encode()).digest()
    return hmac.new(key, ends.encode(), hashlib.sha256).hexdigest()
