"""Refuses request bodies that are too large, and JSON that parsers and stores would choke on later."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_JSON_BYTES = 1_000_000
MAX_DEPTH = 64
# A text that is never closed matches up to the end: looked for again from each quote, it would cost quadratic time.
_TEXT_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


class Refuse(Protocol):
    """Makes the answer to a refused body from an HTTP status and a sentence."""

    def __call__(self, status: int, detail: str) -> ASGIApp: ...


class InsaneJSON(ValueError):
    """JSON that is well formed, or nearly, but that nothing behind the gate should have to bear."""


def check_json(body: bytes) -> None:
    """Raise InsaneJSON for nesting deeper than MAX_DEPTH, numbers beyond a double, NaN, and lone surrogates.

    A body that is no JSON at all passes: the route's own parser says so better, with the position.
    """
    if depth_of(body) > MAX_DEPTH:
        raise InsaneJSON(f"the JSON is nested deeper than {MAX_DEPTH} levels; send it flatter")
    try:
        value = json.loads(body, parse_constant=_no_constant, parse_float=_finite, parse_int=_short)
        json.dumps(value, ensure_ascii=False).encode()
    except InsaneJSON:
        raise
    except UnicodeEncodeError as error:
        raise InsaneJSON("a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from error
    except UnicodeDecodeError as error:
        raise InsaneJSON("the body is not UTF-8") from error
    except json.JSONDecodeError:
        return


def depth_of(body: bytes) -> int:
    """How deep lists and objects are nested, without parsing (a parser may run out of stack)."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for found in _TEXT_OR_BRACKET.finditer(body):
        token = found[0]
        if token in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif token in (b"]", b"}"):
            depth -= 1
    return deepest


def _no_constant(name: str) -> NoReturn:
    raise InsaneJSON(f"{name} is no JSON; leave the value out or send null")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InsaneJSON(f"the number {text[:20]} is too large")
    return value


def _short(text: str) -> int:
    if len(text) > 30:
        raise InsaneJSON(f"the number {text[:20]}… is too long")
    return int(text)


class BodyGuard:
    """ASGI layer: reads a body of at most MAX_JSON_BYTES, checks it if it is JSON, and hands it on.

    Multipart bodies to one of the `streamed` paths pass untouched, and bytes put below one of the `raw` paths: their
    route reads and limits them itself.
    """

    def __init__(self, app: ASGIApp, *, refuse: Refuse, streamed: frozenset[str], raw: tuple[str, ...] = ()) -> None:
        self._app = app
        self._refuse = refuse
        self._streamed = streamed
        self._raw = raw

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").decode("latin-1").lower()
        # With a slash at its end, a path is answered with where to go, whatever the body.
        sent = kind.startswith("multipart/") and scope["path"].rstrip("/") in self._streamed
        if sent or (scope["method"] == "PUT" and scope["path"].startswith(self._raw or ("\0",))):
            await self._app(scope, receive, send)
            return
        body, whole = await _read(receive)
        if body is None:
            detail = f"the body is larger than {MAX_JSON_BYTES:,} bytes"
            await self._refuse(413, detail)(scope, receive, send)
            return
        try:
            if whole and "json" in kind:
                check_json(body)
        except InsaneJSON as error:
            await self._refuse(422, str(error))(scope, receive, send)
            return
        await self._app(scope, _replay(body, whole, receive), send)


async def _read(receive: Receive) -> tuple[bytes | None, bool]:
    """The body, None if it is too large; and whether it came to its end."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts), False
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_JSON_BYTES:
            return None, False
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts), True


def _replay(body: bytes, whole: bool, receive: Receive) -> Callable[[], Awaitable[Message]]:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": not whole}]
    if not whole:
        messages.append({"type": "http.disconnect"})

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return replay
