"""Streams of server-sent events with job events or log lines. One asyncio task reads the new events for all streams."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import redis
from starlette.concurrency import run_in_threadpool

from services.common.background import Background
from services.common.job_reads import JobReads
from services.common.jobstore import JobStore
from services.common.redis_client import key as redis_key
from tlm_core.artifacts import canonical_json
from tlm_core.errors import NotFound, Unavailable
from tlm_core.jobs.spec import Event
from tlm_core.jobs.states import TERMINAL, State
from tlm_core.wire import JobEvent, LogLine

_BUFFERED_EVENTS = 200
_PAGE = 500
_RETRY = "retry: 1000\n\n"
_KEEP_ALIVE = ": still here\n\n"
_KEEP_ALIVE_SECONDS = 15.0
_LOG_SECONDS = 0.5  # between two reads of a log


@dataclass(frozen=True)
class _Head:
    """The changing fields of a job. last_event: the number of its latest event. progress: JSON, or None."""

    state: State
    last_event: int
    progress: str | None


@dataclass
class _Topic:
    """A job with open event streams. recent: its latest events without gaps, oldest first, as from `_numbered`."""

    watchers: int = 0
    head: _Head | None = None
    deleted: bool = False
    recent: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=_BUFFERED_EVENTS))
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def announce(self) -> None:
        """Wake all waiting streams. A stream that waits later waits for the next change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, seq: int) -> list[tuple[int, str]] | None:
        """Return the items of `recent` with numbers above `seq`, or None if `recent` lacks some of these events."""
        if self.head is None or self.head.last_event <= seq:
            return []
        if not self.recent or self.recent[0][0] > seq + 1:
            return None
        return [message for message in self.recent if message[0] > seq]


class Tailer:
    """Feeds all event streams of a gateway. While a stream is open, `run` reads new events every `interval` seconds.

    Each stream reads older events itself, because these events may be in the storage instead of Redis.
    progress_interval: the minimum number of seconds between two `progress` events of a stream.
    """

    def __init__(
        self, client: redis.Redis, jobs: JobStore, *, interval: float = 0.25, progress_interval: float = 1.0
    ) -> None:
        self._redis = client
        self._jobs = jobs
        self._unmoved = JobReads(client)  # does not read the storage, because a slow storage would delay all streams
        self._interval = interval
        self._progress_interval = progress_interval
        self._topics: dict[tuple[str, str], _Topic] = {}
        self._watched = asyncio.Event()
        self.closed = False  # whether the gateway is shutting down
        self.task = Background("events")

    @property
    def watchers(self) -> int:
        """The number of open event streams."""
        return sum(topic.watchers for topic in list(self._topics.values()))

    async def run(self) -> None:
        """Read new events until cancelled. Streams stay open while Redis is unavailable."""
        with self.task.running():
            while not self.closed:
                if not self._topics:
                    self._watched.clear()
                    await self._watched.wait()
                with self.task.round():
                    await self._poll()
                await asyncio.sleep(self.task.delay(self._interval))

    def close(self) -> None:
        """End all streams without an `end` event, so that clients reconnect."""
        self.closed = True
        self._watched.set()
        for topic in self._topics.values():
            topic.announce()

    async def stream(self, tenant: str, job_id: str, after: int) -> AsyncIterator[str]:
        """Yield the server-sent events of a job: its events with numbers above `after`, and `end` when the job ends.

        The id of a server-sent event is the number of the job event. `progress` events have no id, so a resumed stream
        does not repeat them. If the job is deleted or the gateway stops, the stream ends without `end`.
        """
        with self._watch(tenant, job_id) as topic:
            yield _RETRY
            while page := await self._read(tenant, job_id, after):
                after = page[-1][0]
                yield "".join(message for _, message in page)
            shown: str | None = None
            sent_at = time.monotonic()
            due = 0.0  # when the next snapshot can be sent
            while not (self.closed or topic.deleted):
                changed = topic.changed
                events = topic.after(after)
                if events is None:
                    events = await self._read(tenant, job_id, after)
                if events:
                    after = events[-1][0]
                    sent_at = time.monotonic()
                    yield "".join(message for _, message in events)
                    continue
                head = topic.head
                if head is not None and head.state in TERMINAL and after >= head.last_event:
                    yield _message("end", canonical_json({"state": head.state}))
                    return
                now = time.monotonic()
                wait = sent_at + _KEEP_ALIVE_SECONDS - now
                if head is not None and head.progress is not None and head.progress != shown:
                    if now >= due:
                        shown, sent_at, due = head.progress, now, now + self._progress_interval
                        yield _message("progress", head.progress)
                        continue
                    wait = min(wait, due - now)
                if now - sent_at >= _KEEP_ALIVE_SECONDS:
                    sent_at = now
                    yield _KEEP_ALIVE
                    continue
                # `asyncio.wait_for` would create a task per wait, and thousands of streams may wait at once.
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(wait, 0.001)):
                        await changed.wait()

    async def _read(self, tenant: str, job_id: str, after: int) -> list[tuple[int, str]]:
        """Return a page of the events with numbers above `after`. Retry while Redis or the storage is unavailable."""
        while not self.closed:
            try:
                events = await run_in_threadpool(self._jobs.events, tenant, job_id, after=after, limit=_PAGE)
                return [_numbered(event) for event in events]
            except Unavailable:
                await asyncio.sleep(self._interval)
        return []

    @contextmanager
    def _watch(self, tenant: str, job_id: str) -> Iterator[_Topic]:
        key = (tenant, job_id)
        topic = self._topics.setdefault(key, _Topic())
        topic.watchers += 1
        self._watched.set()
        try:
            yield topic
        finally:
            topic.watchers -= 1
            if not topic.watchers:
                self._topics.pop(key, None)

    async def _poll(self) -> None:
        """Read the heads of all watched jobs, and the new events of the jobs that have changed."""
        keys = list(self._topics)
        pipe = self._redis.pipeline(transaction=False)
        for tenant, job_id in keys:
            pipe.hmget(redis_key(tenant, "job", job_id), ["state", "last_event", "progress"])
        # A thread outside the pool of the routes, because all threads of the pool may wait for the storage.
        heads = await asyncio.to_thread(pipe.execute, raise_on_error=False)
        for key, values in zip(keys, heads, strict=True):
            with self.task.item(f"job {key[1]}", job_id=key[1]):
                if isinstance(values, Exception):
                    raise values
                if topic := self._topics.get(key):
                    await self._update(key, topic, *values)

    async def _update(
        self, key: tuple[str, str], topic: _Topic, state: str | None, last_event: str, progress: str | None
    ) -> None:
        """Store the head and the new events of a job in `topic`, and wake its streams. A deleted job has state None."""
        if state is None:
            topic.deleted = True
            topic.announce()
            return
        head = _Head(State(state), int(last_event), progress)
        if head == topic.head:
            return
        recent = topic.recent
        last = recent[-1][0] if recent else max(head.last_event - _BUFFERED_EVENTS // 2, 0)
        if head.last_event > last:
            recent.extend(map(_numbered, await asyncio.to_thread(self._unmoved.events, *key, after=last, limit=_PAGE)))
            if recent and recent[-1][0] < head.last_event:
                # More than one page of new events, or events in the storage: the streams read the rest themselves.
                recent.clear()
        topic.head = head
        topic.announce()


async def log_stream(jobs: JobStore, tailer: Tailer, tenant: str, job_id: str, after: str) -> AsyncIterator[str]:
    """Yield the log lines after stream id `after` as server-sent events. When the job ends, yield `end` with its state.

    The stream ends without `end` when the gateway stops or the job is deleted. While Redis or the storage is
    unavailable, the stream waits.
    """
    yield _RETRY
    sent_at = time.monotonic()
    while not tailer.closed:
        try:
            # Read the state before the lines, so that the lines of an ended job are complete.
            state = await run_in_threadpool(jobs.state, tenant, job_id)
            lines = await run_in_threadpool(jobs.logs, tenant, job_id, after=after, limit=_PAGE)
        except NotFound:
            return
        except Unavailable:
            await asyncio.sleep(_LOG_SECONDS)
            continue
        if lines:
            after, sent_at = lines[-1]["id"], time.monotonic()
            yield "".join(_message("line", LogLine(**line).model_dump_json(), line["id"]) for line in lines)
            continue
        if state in TERMINAL:
            yield _message("end", canonical_json({"state": state}))
            return
        if time.monotonic() - sent_at >= _KEEP_ALIVE_SECONDS:
            sent_at = time.monotonic()
            yield _KEEP_ALIVE
        await asyncio.sleep(_LOG_SECONDS)


def _numbered(event: Event) -> tuple[int, str]:
    """Return (number of a job event, text of its server-sent event)."""
    return event.seq, _message(event.type, JobEvent.model_validate(event).model_dump_json(), event.seq)


def _message(event: str, data: str, message_id: int | str | None = None) -> str:
    """Return the text of a server-sent event. event: its type. data: JSON on one line."""
    name = json.dumps(event)[1:-1]  # A line break in the type would end the line.
    return (f"id: {message_id}\n" if message_id is not None else "") + f"event: {name}\ndata: {data}\n\n"
