"""Server-sent events as one stream that outlives broken connections and restarts of the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from tlm_client.steps import Emit, Listing, Now, Open, Read, Sleep, refused
from tlm_core.errors import Unavailable
from tlm_core.wire import JobEvent

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 5.0
# The gateway sends a comment every few seconds; a longer silence is a dead connection.
_SILENCE_SECONDS = 45.0


@dataclass(frozen=True)
class Frame:
    """One event as sent; id: None for snapshots, which are no history."""

    event: str
    data: str
    id: str | None = None

    @property
    def place(self) -> tuple[int, ...] | None:
        """Where it stands in its log."""
        return None if self.id is None else _place(self.id)


def follow(path: str, after: str, *, patience: float) -> Listing[Frame]:
    """Events of `path` behind id `after`, each once and in order, until the gateway says that the log has ended.

    patience: seconds without any answer after which Unavailable is raised. Raises what the gateway answers with.
    """
    delay, heard = _FIRST_DELAY, (yield Now())
    while True:
        parser = EventParser()
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if _place(after) > (0,) else {})
        try:
            opened = yield Open("GET", path, headers, httpx.Timeout(_SILENCE_SECONDS, connect=5.0))
            if opened.status >= 400:
                raise (yield from refused(opened))
            while (piece := (yield Read())) is not None:
                delay, heard = _FIRST_DELAY, (yield Now())
                for frame in parser.feed(piece):
                    if frame.event == "end":
                        return
                    if frame.id is not None:
                        if _place(frame.id) <= _place(after):
                            continue
                        after = frame.id
                    yield Emit(frame)
            reason = "it closed the stream before its end"
        except (httpx.TransportError, Unavailable) as error:
            reason = str(error) or type(error).__name__
        if (yield Now()) - heard > patience:
            raise Unavailable(f"the gateway has not told anything for {patience:.0f} s ({reason}); watch again later")
        yield Sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY)


class EventParser:
    """Frames of a text/event-stream that comes in pieces; one that is cut off is not told."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, str] = {}

    def feed(self, piece: bytes) -> Iterator[Frame]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for raw in lines:
            line = raw.decode("utf-8", "replace").rstrip("\r")
            if line:
                self._line(line)
                continue
            fields, self._fields = self._fields, {}
            if "data" in fields or "event" in fields:
                yield Frame(fields.get("event", "message"), fields.get("data", ""), fields.get("id"))

    def _line(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and name in self._fields:
            self._fields[name] += f"\n{value}"
        elif name:  # a line that begins with a colon is a comment
            self._fields[name] = value


def job_event(frame: Frame) -> JobEvent:
    """`data` is the event itself for numbered ones, and plain facts for snapshots."""
    body = json.loads(frame.data or "{}")
    seq = int(frame.id) if frame.id is not None and frame.id.isdigit() else None
    if isinstance(body, dict) and seq is not None and "data" in body:
        return JobEvent(type=frame.event, seq=seq, at=body.get("at"), attempt=body.get("attempt"), data=body["data"])
    return JobEvent(type=frame.event, seq=seq, data=body if isinstance(body, dict) else {"value": body})


def _place(text: str) -> tuple[int, ...]:
    """`7` and `1700000000000-3` as what they are ordered by."""
    parts = text.split("-")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)
