"""Reject request bodies that are too large, and JSON that parsers or stores cannot handle."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable
from typing import NoReturn

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_JSON_BYTES = 1_000_000
MAX_DEPTH = 64
_LONG_BYTES = 1 << 16  # the check of a longer body would delay other requests
# An unclosed string matches up to the end. Otherwise the search would restart at each quote, in quadratic time.
_TEXT_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


class UnsupportedJSON(ValueError):
    """JSON that the service does not accept, such as NaN, a lone surrogate, or nesting beyond MAX_DEPTH."""


def check_json(body: bytes) -> None:
    """Raise UnsupportedJSON for a value that parsers or stores cannot handle.

    Such values are: nesting deeper than MAX_DEPTH, numbers beyond the range of a double, integers of more than 30
    characters, NaN, lone surrogates, and bytes that are not UTF-8. Malformed JSON passes: the parser of the route
    reports it with the position.
    """
    if depth_of(body) > MAX_DEPTH:
        raise UnsupportedJSON(f"The JSON is nested deeper than {MAX_DEPTH} levels. Send a flatter value.")
    try:
        value = json.loads(body, parse_constant=_reject_constant, parse_float=_float, parse_int=_int)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UnsupportedJSON(
            "A text contains a lone surrogate (\\ud800 to \\udfff), which is not a character. Remove it."
        ) from error
    except UnicodeDecodeError as error:
        raise UnsupportedJSON("The body is not UTF-8. Encode it as UTF-8.") from error
    except json.JSONDecodeError:
        return


def depth_of(body: bytes) -> int:
    """Return the nesting depth of lists and objects in the JSON `body`, but at most MAX_DEPTH + 1.

    If the body has at most MAX_DEPTH opening brackets, it cannot be too deep, and the function returns 0. The function
    does not parse the body, because a parser may exhaust the stack.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for match in _TEXT_OR_BRACKET.finditer(body):
        token = match[0]
        if token in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
            if deepest > MAX_DEPTH:
                break
        elif token in (b"]", b"}"):
            depth -= 1
    return deepest


def _reject_constant(name: str) -> NoReturn:
    raise UnsupportedJSON(f"{name} is not valid JSON. Omit the value or send null.")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise UnsupportedJSON(f"The number {text[:20]} is too large. Send at most 1.7e308.")
    return value


def _int(text: str) -> int:
    if len(text) > 30:
        raise UnsupportedJSON(f"The number {text[:20]}… is too long. Send at most 30 digits.")
    return int(text)


class BodyCheck:
    """ASGI middleware that rejects bodies of more than MAX_JSON_BYTES, and JSON that `check_json` rejects.

    reject: returns the response for an HTTP status and a message. streamed: paths whose multipart bodies are not
    checked. raw: prefixes of paths whose PUT bodies are not checked. The routes of these paths limit the bodies.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        reject: Callable[[int, str], ASGIApp],
        streamed: frozenset[str],
        raw: tuple[str, ...] = (),
    ) -> None:
        self._app = app
        self._reject = reject
        self._streamed = streamed
        self._raw = raw

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        content_type = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1").lower()
        # The application redirects a path with a trailing slash, so this body need not be read.
        is_upload = content_type.startswith("multipart/") and scope["path"].rstrip("/") in self._streamed
        if is_upload or (scope["method"] == "PUT" and scope["path"].startswith(self._raw)):
            await self._app(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:
            return
        if len(body) > MAX_JSON_BYTES:
            message = f"The body is larger than {MAX_JSON_BYTES:,} bytes. Send a smaller body."
            await self._reject(413, message)(scope, receive, send)
            return
        try:
            if "json" in content_type:
                if len(body) > _LONG_BYTES:
                    await asyncio.to_thread(check_json, body)
                else:
                    check_json(body)
        except UnsupportedJSON as error:
            await self._reject(422, str(error))(scope, receive, send)
            return
        messages: list[Message] = [{"type": "http.request", "body": body}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)


async def _read(receive: Receive) -> bytes | None:
    """Return the body, or the beginning of a body of more than MAX_JSON_BYTES, or None if the client disconnected."""
    body, is_partial = bytearray(), True
    while is_partial and len(body) <= MAX_JSON_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        is_partial = message.get("more_body", False)
    return bytes(body)
