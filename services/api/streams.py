"""Server-sent events: events and log lines of jobs. One asyncio task per process polls all watched jobs."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
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


# state, last_event and progress of a record
_HeadValues = tuple[str | None, str, str | None]


@dataclass(frozen=True)
class Head:
    """The fields of a job that change while it runs, read in one step. progress: stored JSON."""

    state: State
    last_event: int
    progress: str | None


@dataclass
class _Topic:
    """A watched job. recent: its latest events without a gap, oldest first."""

    watchers: int = 0
    head: Head | None = None
    deleted: bool = False
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=_BUFFERED_EVENTS))
    texts: dict[int, str] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def announce(self) -> None:
        """Wake all waiting streams. A stream that waits later waits for the next change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def text(self, event: Event) -> str:
        """Return the event as sent, formatted once for all streams."""
        text = self.texts.get(event.seq)
        if text is None:
            if len(self.texts) > 2 * _BUFFERED_EVENTS:
                self.texts.clear()
            body = JobEvent.model_validate(event).model_dump_json()
            text = self.texts[event.seq] = _message(event.type, body, event.seq)
        return text

    def after(self, seq: int) -> list[Event] | None:
        """Return the events after `seq`, or None if the buffer lacks some of them."""
        if self.head is None or self.head.last_event <= seq:
            return []
        if not self.recent or self.recent[0].seq > seq + 1:
            return None
        return [event for event in self.recent if event.seq > seq]


class Tailer:
    """Feeds event streams. `run` is the only task that polls; without watchers it sends no request to Redis.

    Streams themselves read the events that have moved to the storage.
    """

    def __init__(
        self, client: redis.Redis, jobs: JobStore, *, interval: float = 0.25, progress_interval: float = 1.0
    ) -> None:
        self._redis = client
        self._jobs = jobs
        self._unmoved = JobReads(client)  # reads no storage, because a storage that hangs would delay all streams
        self._interval = interval
        self._progress_interval = progress_interval
        self._topics: dict[tuple[str, str], _Topic] = {}
        self._watched = asyncio.Event()
        self.closed = False  # whether the gateway is shutting down
        self.task = Background("events")

    @property
    def watchers(self) -> int:
        """Number of open streams."""
        return sum(topic.watchers for topic in list(self._topics.values()))

    async def run(self) -> None:
        """Poll until cancelled. Streams stay open while the store is unavailable."""
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
        """Yield the server-sent events of an existing job: stored events after seq `after`, new ones, then `end`.

        Stored events have their seq as id. `progress` snapshots have no id and are not replayed. If the job is deleted
        the stream ends without `end`.
        """
        with self._watch(tenant, job_id) as topic:
            yield _RETRY
            while page := await self._read(tenant, job_id, after):
                after = page[-1].seq
                yield "".join(map(topic.text, page))
            shown: str | None = None
            shown_at = sent_at = time.monotonic()
            due = 0.0
            while not (self.closed or topic.deleted):
                changed = topic.changed
                events = topic.after(after)
                if events is None:
                    events = await self._read(tenant, job_id, after)
                if events:
                    after = events[-1].seq
                    sent_at = time.monotonic()
                    yield "".join(map(topic.text, events))
                    continue
                head = topic.head
                if head is not None and head.state in TERMINAL and after >= head.last_event:
                    yield _message("end", canonical_json({"state": head.state}))
                    return
                now = time.monotonic()
                if head is not None and head.progress != shown and head.progress is not None:
                    if now >= due:
                        shown, shown_at, sent_at = head.progress, now, now
                        due = shown_at + self._progress_interval
                        yield _message("progress", head.progress)
                        continue
                    wait = due - now
                else:
                    wait = _KEEP_ALIVE_SECONDS
                if now - sent_at >= _KEEP_ALIVE_SECONDS:
                    sent_at = now
                    yield _KEEP_ALIVE
                    continue
                await _wait(changed, min(wait, _KEEP_ALIVE_SECONDS - (now - sent_at)))

    async def _read(self, tenant: str, job_id: str, after: int) -> list[Event]:
        """Return a page of events from the store. The response has begun, so retry while the store is unavailable."""
        while not self.closed:
            try:
                return await run_in_threadpool(self._jobs.events, tenant, job_id, after=after, limit=_PAGE)
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
        keys = list(self._topics)
        heads = await asyncio.to_thread(self._heads, keys)  # All threads of the routes may wait for the storage.
        for key, values in zip(keys, heads, strict=True):
            with self.task.item(f"job {key[1]}", job_id=key[1]):
                if isinstance(values, Exception):
                    raise values
                await self._follow(key, values)

    async def _follow(self, key: tuple[str, str], values: _HeadValues) -> None:
        state, last_event, progress = values
        head = None if state is None else Head(State(state), int(last_event), progress)
        topic = self._topics.get(key)
        if topic is None or (head is not None and head == topic.head):
            return
        if head is None:
            topic.deleted = True
        else:
            await self._update(key, topic, head)
        topic.announce()

    async def _update(self, key: tuple[str, str], topic: _Topic, head: Head) -> None:
        last = topic.recent[-1].seq if topic.recent else max(head.last_event - _BUFFERED_EVENTS // 2, 0)
        if head.last_event > last:
            events = await asyncio.to_thread(self._unmoved.events, *key, after=last, limit=_PAGE)
            topic.recent.extend(events)
            if topic.recent and topic.recent[-1].seq < head.last_event:
                # More than one page of new events, or events in the storage: streams read the rest themselves.
                topic.recent.clear()
        topic.head = head

    def _heads(self, keys: Sequence[tuple[str, str]]) -> list[_HeadValues | Exception]:
        pipe = self._redis.pipeline(transaction=False)
        for tenant, job_id in keys:
            pipe.hmget(redis_key(tenant, "job", job_id), ["state", "last_event", "progress"])
        return pipe.execute(raise_on_error=False)


async def log_stream(jobs: JobStore, tailer: Tailer, tenant: str, job_id: str, after: str) -> AsyncIterator[str]:
    """Yield log lines after stream id `after`, each with its id, until the job ends; then `end` with its state.

    The stream ends without `end` when the gateway stops or the job is deleted. It waits while the store is unavailable.
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


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    # wait_for would create a task per wait, and thousands of streams may wait at once.
    try:
        async with asyncio.timeout(max(seconds, 0.001)):
            await changed.wait()
    except TimeoutError:
        return


def _message(event: str, data: str, message_id: int | str | None = None) -> str:
    # JSON has no raw line break, so the data fits on one line; escaping the type keeps the frame intact.
    name = json.dumps(event)[1:-1]
    return (f"id: {message_id}\n" if message_id is not None else "") + f"event: {name}\ndata: {data}\n\n"
