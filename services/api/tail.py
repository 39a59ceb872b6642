"""Live events of jobs: one task per process looks at the jobs that are watched, however many streams there are."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis
from starlette.concurrency import run_in_threadpool

from services.common.jobstore import JobStore
from services.common.redis_client import key as redis_key
from services.common.redis_client import translated_errors
from tlm_core.artifacts import canonical_json
from tlm_core.errors import Unavailable
from tlm_core.jobs.spec import Event
from tlm_core.jobs.states import TERMINAL, State

log = logging.getLogger(__name__)

_KEPT_EVENTS = 200
_PAGE = 500


@dataclass(frozen=True)
class Head:
    """What changes of a job while it runs, read in one step. progress: JSON as stored."""

    state: State
    last_event: int
    progress: str | None


@dataclass
class _Topic:
    """A job that is watched. recent: its latest events without a gap, oldest first. gone: it was deleted meanwhile."""

    watchers: int = 0
    head: Head | None = None
    gone: bool = False
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=_KEPT_EVENTS))
    texts: dict[int, str] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def announce(self) -> None:
        """Wake all who wait; those who come later wait for the next change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def text(self, event: Event) -> str:
        """The event as it is sent; written once, however many streams send it."""
        found = self.texts.get(event.seq)
        if found is None:
            if len(self.texts) > 2 * _KEPT_EVENTS:
                self.texts.clear()
            found = self.texts[event.seq] = _text(event.type, event.model_dump_json(), event.seq)
        return found

    def after(self, seq: int) -> list[Event] | None:
        """The events after `seq`, or None if older ones than those at hand are needed."""
        if self.head is None or self.head.last_event <= seq:
            return []
        if not self.recent or self.recent[0].seq > seq + 1:
            return None
        return [event for event in self.recent if event.seq > seq]


class Tailer:
    """Feeds event streams. `run` is the one task that polls; without watchers it asks the store nothing."""

    def __init__(
        self,
        client: redis.Redis,
        jobs: JobStore,
        *,
        interval: float = 0.25,
        keep_alive: float = 15.0,
        progress_interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = client
        self._jobs = jobs
        self._interval = interval
        self._keep_alive = keep_alive
        self._progress_interval = progress_interval
        self._clock = clock
        self._topics: dict[tuple[str, str], _Topic] = {}
        self._watched = asyncio.Event()
        self._closed = False
        self.alive = False

    @property
    def watchers(self) -> int:
        """Streams that are open."""
        return sum(topic.watchers for topic in list(self._topics.values()))

    @property
    def closed(self) -> bool:
        """Whether the gateway is ending."""
        return self._closed

    async def run(self) -> None:
        """Poll until cancelled. While the store is away streams stay open and go on when it is back."""
        away, self.alive = False, True
        try:
            while not self._closed:
                if not self._topics:
                    self._watched.clear()
                    await self._watched.wait()
                try:
                    await self._poll()
                    away = False
                except Unavailable as error:
                    if not away:
                        log.warning("event streams wait for the job store: %s", error)
                    away = True
                await asyncio.sleep(self._interval)
        finally:
            self.alive = False

    def close(self) -> None:
        """End all streams, without a last event: the watchers come back to whoever serves them next."""
        self._closed = True
        self._watched.set()
        for topic in self._topics.values():
            topic.announce()

    async def stream(self, tenant: str, job_id: str, after: int) -> AsyncIterator[str]:
        """Server-sent events of a job that exists: those after seq `after`, then live ones, then `end`.

        Log events carry their seq as id. `progress` snapshots have none: they are news, not history. Of a job that is
        deleted meanwhile there is no `end`: whoever watches asks again, and is told that it is not there.
        """
        with self._watch(tenant, job_id) as topic:
            yield "retry: 1000\n\n"
            while page := await self._read(tenant, job_id, after):
                after = page[-1].seq
                yield "".join(map(topic.text, page))
            shown: str | None = None
            shown_at = spoke_at = self._clock()
            due = 0.0
            while not (self._closed or topic.gone):
                changed = topic.changed
                events = topic.after(after)
                if events is None:
                    events = await self._read(tenant, job_id, after)
                if events:
                    after = events[-1].seq
                    spoke_at = self._clock()
                    yield "".join(map(topic.text, events))
                    continue
                head = topic.head
                if head is not None and head.state in TERMINAL and after >= head.last_event:
                    yield _text("end", canonical_json({"state": head.state}))
                    return
                now = self._clock()
                if head is not None and head.progress != shown and head.progress is not None:
                    if now >= due:
                        shown, shown_at, spoke_at = head.progress, now, now
                        due = shown_at + self._progress_interval
                        yield _text("progress", head.progress)
                        continue
                    wait = due - now
                else:
                    wait = self._keep_alive
                if now - spoke_at >= self._keep_alive:
                    spoke_at = now
                    yield ": still here\n\n"
                    continue
                await _wait(changed, min(wait, self._keep_alive - (now - spoke_at)))

    async def _read(self, tenant: str, job_id: str, after: int) -> list[Event]:
        """A page of events from the store; waits while the store is away, for a stream has begun to answer."""
        while not self._closed:
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
        heads = await run_in_threadpool(self._heads, keys)
        for key, head in zip(keys, heads, strict=True):
            topic = self._topics.get(key)
            if topic is None:
                continue
            if head is None:
                topic.gone = True
                topic.announce()
                continue
            if head == topic.head:
                continue
            known = topic.recent[-1].seq if topic.recent else max(head.last_event - _KEPT_EVENTS // 2, 0)
            if head.last_event > known:
                found = await run_in_threadpool(self._jobs.events, *key, after=known, limit=_PAGE)
                topic.recent.extend(found)
                if found and found[-1].seq < head.last_event:
                    # More than a page came at once; streams read the rest from the store.
                    topic.recent.clear()
            topic.head = head
            topic.announce()

    def _heads(self, keys: Sequence[tuple[str, str]]) -> list[Head | None]:
        with translated_errors():
            pipe = self._redis.pipeline(transaction=False)
            for tenant, job_id in keys:
                pipe.hmget(redis_key(tenant, "job", job_id), ["state", "last_event", "progress"])
            rows: list[list[Any]] = pipe.execute()
        return [Head(State(s), int(n), p) if s is not None else None for s, n, p in rows]


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    # Not wait_for: it makes a task for each wait, and thousands of streams wait at once.
    try:
        async with asyncio.timeout(max(seconds, 0.001)):
            await changed.wait()
    except TimeoutError:
        return


def _text(kind: str, data: str, seq: int | None = None) -> str:
    # JSON has no raw line break, so one data line holds it; a type with one would break the frame.
    name = json.dumps(kind)[1:-1]
    return (f"id: {seq}\n" if seq is not None else "") + f"event: {name}\ndata: {data}\n\n"
