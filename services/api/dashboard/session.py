"""Sessions of the dashboard: a signed cookie, and a check of the origin of each write request.

The cookie has an expiry time and a signature. The key of the signature is derived from the API token, so a new token
invalidates every session. The gateway stores no sessions.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

COOKIE = "tlm_session"
LIFETIME_SECONDS = 7 * 86_400


def issue(token: str, now: float) -> str:
    """Return the cookie value of a session that starts at `now` (Unix seconds)."""
    expires = str(int(now) + LIFETIME_SECONDS)
    return f"{expires}.{_signature(token, expires)}"


def is_valid(value: str, token: str, now: float) -> bool:
    """Return whether a cookie value was issued for this token and has not expired."""
    expires, _, signature = value.partition(".")
    genuine = hmac.compare_digest(signature.encode(), _signature(token, expires).encode())
    return genuine and int(expires) > now


def is_own(headers: Mapping[str, str]) -> bool:
    """Return whether a write request comes from a page of this dashboard.

    Browsers send the header Origin with each POST. Origin must be this host. Without Origin, the header Sec-Fetch-Site
    must be same-origin.
    """
    origin = headers.get("origin")
    if origin:
        try:
            return bool(headers.get("host")) and urlsplit(origin).netloc.lower() == headers["host"].lower()
        except ValueError:  # such as http://[
            return False
    return headers.get("sec-fetch-site") == "same-origin"


def local_path(path: str) -> str:
    """Return the page to show after the sign-in: `path` if it is a page of the dashboard, else the list of jobs."""
    is_local = path.startswith("/ui/") and "\\" not in path and "//" not in path and path.isprintable()
    return path if is_local else "/ui/jobs"


def _signature(token: str, expires: str) -> str:
    key = hashlib.sha256(b"dashboard session\0" + token.encode()).digest()
    return hmac.new(key, expires.encode(), hashlib.sha256).hexdigest()
