"""Server-sent events of a job, as one stream that outlives broken connections and restarts of the gateway."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator

import httpx

from tlm_client.models import JobEvent
from tlm_client.problems import error_of
from tlm_core.errors import Unavailable

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 5.0
# The gateway sends a comment every few seconds; a longer silence is a dead connection.
_SILENCE_SECONDS = 45.0


def follow(
    http: httpx.Client,
    path: str,
    after: int,
    *,
    patience: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[JobEvent]:
    """Events of `path` with seq > after, each once and in order, until the gateway says that the log has ended.

    patience: seconds without any answer after which Unavailable is raised. Raises what the gateway answers with.
    """
    delay, heard = _FIRST_DELAY, clock()

    def touch() -> None:
        nonlocal delay, heard
        delay, heard = _FIRST_DELAY, clock()

    while True:
        try:
            for event in _connection(http, path, after, touch):
                if event.type == "end":
                    return
                if event.seq is not None:
                    if event.seq <= after:
                        continue
                    after = event.seq
                yield event
            reason = "it closed the stream before its end"
        except (httpx.TransportError, Unavailable) as error:
            reason = str(error) or type(error).__name__
        if clock() - heard > patience:
            raise Unavailable(f"the gateway has not told anything for {patience:.0f} s ({reason}); watch again later")
        sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY)


def _connection(http: httpx.Client, path: str, after: int, touch: Callable[[], None]) -> Iterator[JobEvent]:
    """The events of one connection; `touch` is called for whatever comes, so that silence can be told from absence."""

    def lines(response: httpx.Response) -> Iterator[str]:
        for line in response.iter_lines():
            touch()
            yield line

    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(after)} if after else {})
    timeout = httpx.Timeout(_SILENCE_SECONDS, connect=5.0)
    with http.stream("GET", path, headers=headers, timeout=timeout) as response:
        if response.is_error:
            response.read()
            raise error_of(response)
        yield from parse(lines(response))


def parse(lines: Iterable[str]) -> Iterator[JobEvent]:
    """Events of a text/event-stream; one that is cut off is not told."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields or "event" in fields:
                yield _event(fields)
            fields = {}
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name:  # a line that begins with a colon is a comment
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value


def _event(fields: dict[str, str]) -> JobEvent:
    """`data` is the event itself for numbered ones, and plain facts for snapshots."""
    body = json.loads(fields.get("data") or "{}")
    seq = int(fields["id"]) if fields.get("id", "").isdigit() else None
    kind = fields.get("event", "message")
    if isinstance(body, dict) and seq is not None and "data" in body:
        return JobEvent(type=kind, seq=seq, at=body.get("at"), attempt=body.get("attempt"), data=body["data"])
    return JobEvent(type=kind, seq=seq, data=body if isinstance(body, dict) else {"value": body})
