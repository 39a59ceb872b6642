"""The job store: every job, its events, metrics and logs, and which artifacts exist. All of it lies in Redis.

Each verb is one Lua script. It checks state, owner, and attempt, changes the record, appends the event, and updates
the indexes, or it changes nothing. All times are the Redis server's, so the clocks of other machines do not matter.
"""

from __future__ import annotations

import json
import logging
import re
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from services.common.history import STREAMS, History, Moved, Row, packed, position, unpacked
from services.common.logs import request_id
from services.common.metrics import Live
from services.common.redis_client import (
    DISK_FREE,
    ENDED,
    FEED,
    LEASES,
    ORPHANS,
    PREFIX,
    QUEUE,
    REMOVALS,
    TO_MOVE,
    key,
    load_scripts,
)
from tlm_core.artifacts.hashing import canonical_json, digest_of
from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.errors import (
    Conflict,
    CorruptArtifact,
    IdempotencyMismatch,
    IllegalTransition,
    NotFound,
    StaleAttempt,
    StoreFull,
    TLMError,
    UnreadableRecord,
    without_details,
)
from tlm_core.jobs.spec import FROM_JOB, MAX_PRIORITY, Beat, Event, JobRecord, JobSpec, Origin, Progress, Resolved
from tlm_core.jobs.states import ACTIVE, TERMINAL, TRANSITIONS, State, Verb, allowed
from tlm_core.names import new_id
from tlm_core.training.recipe import resolve

log = logging.getLogger(__name__)

_LUA = Path(__file__).parent / "lua"
_TERMINAL_JSON = canonical_json(dict.fromkeys(TERMINAL, True))
_ACTIVE_JSON = canonical_json(dict.fromkeys(ACTIVE, True))
_JSON_FIELDS = frozenset(
    {"spec", "resolved", "origin", "submissions", "beats", "excluded_from_cache", "checkpoints"}
    | {"progress", "waiting", "error", "result"}
)
_UNPACKED = frozenset({"state", "last_event", "history", "packed"})  # fields that are read alone
_MAX_LOG_LINES = 20_000  # and metric points, in Redis: only while the storage is away
_MOVED_LINES = 2_000  # and metric points, from which on they move to the storage
_MAX_FEED_ENTRIES = 100_000
ARCHIVE_SECONDS = 30 * 86_400.0  # after the end of a job, until its record is compressed
_FOLDER = re.compile(r'"folder": ?"([^"]+)"')  # in the JSON of a record
_DISK_RESERVE = 256 << 20  # bytes on Redis's disk, beyond a copy of its data
_PAGE = 1000  # members of a set that one command reads for a list
_MAX_COUNTED_SECONDS = 60.0  # of running time between two renewals; a step of the clock may be longer
_IDEMPOTENCY_SECONDS = 7 * 86_400


Claimable = Literal["any", "leased", "stopping"]

# Has `id` of the stream, `attempt`, `at`, and the values that the worker reported.
MetricPoint = dict[str, str | float | None]


class LogLine(TypedDict):
    """A line of a job's log. id: of the stream. at: Unix seconds."""

    id: str
    attempt: int
    at: float
    line: str


class CheckpointRef(BaseModel):
    """A published checkpoint, and the job and attempt that wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: ManifestRef
    step: int
    node: str
    job: str
    attempt: int
    metrics: dict[str, float | None] = {}


@dataclass(frozen=True)
class _Publication:
    """An artifact or a checkpoint that a report publishes. body: its reference as JSON."""

    artifact: str
    body: str
    is_checkpoint: bool = False


@dataclass(frozen=True)
class Removal:
    """What remains to be deleted after the record of a job or a dataset is gone.

    folders: folders in the storage. artifacts: ids that the job published; those that another job on the same data
    shares stay. data: digests of the job's datasets. with_jobs: delete the finished jobs on the dataset too.
    """

    tenant: str
    id: str
    folders: Sequence[str] = ()
    artifacts: Sequence[str] = ()
    data: Sequence[str] = ()
    with_jobs: bool = False

    @property
    def member(self) -> str:
        return f"{self.tenant}/{self.id}"


class JobStore:
    """All operations on jobs. Thread-safe. Raises StoreUnavailable or StoreFull.

    history: reads the older entries of streams, which lie in the storage.
    """

    def __init__(self, client: redis.Redis, history: History | None = None) -> None:
        self._history = history
        # redis-py types each answer as bytes, text, or awaitable; with decode_responses it is text.
        self._redis: Any = client
        self._script = load_scripts(client, _LUA)

    def ping(self) -> None:
        self._redis.ping()

    def check_space(self) -> None:
        """Raise StoreFull before Redis's disk is full: then Redis would exit.

        Redis needs room for a second copy of its data, when it rewrites the append-only file.
        """
        pipe = self._redis.pipeline(transaction=False)
        pipe.get(DISK_FREE)
        pipe.info("memory")
        free, memory = pipe.execute()
        needed = memory["used_memory"] + _DISK_RESERVE
        if free is not None and int(free) * 1024 < needed:
            raise StoreFull(
                f"The disk of Redis has only {int(free) >> 10} MiB of free space. No job is accepted or started until "
                f"{needed >> 20} MiB are free. Enlarge the disk, or delete other files on it."
            )

    def figures(self, tenant: str) -> list[Live]:
        """Return the figures of the store for Prometheus."""
        queues = [_queue(priority) for priority in range(-MAX_PRIORITY, MAX_PRIORITY + 1)]
        began = time.perf_counter()
        self._redis.set(f"{PREFIX}:probe", "", ex=60)
        write_seconds = time.perf_counter() - began
        pipe = self._redis.pipeline(transaction=False)
        pipe.info("memory").get(DISK_FREE).time().hlen(REMOVALS).scard(TO_MOVE)
        for state in State:
            pipe.zcard(key(tenant, "state", state))
        for queue in queues:
            pipe.zrange(queue, 0, 0, withscores=True)
        memory, disk_free, (now, _), removals, to_move, *rest = pipe.execute()
        counts, heads = rest[: len(State)], rest[len(State) :]
        oldest = max((now - score for head in heads for _, score in head), default=0.0)
        figures = [
            Live("tlm_queue_oldest_seconds", "Age of the oldest queued job.", max(0.0, oldest)),
            Live("tlm_redis_write_seconds", "Time of a write to Redis, with its fsync.", write_seconds),
            Live("tlm_redis_memory_bytes", "Memory of Redis.", memory["used_memory"]),
            Live("tlm_redis_memory_limit_bytes", "Limit of that memory; 0: none.", memory["maxmemory"]),
            Live("tlm_removals", "Deletions that are not complete.", removals),
            Live("tlm_streams_to_move", "Jobs whose streams wait for the storage.", to_move),
        ]
        if disk_free:
            figures.append(Live("tlm_redis_disk_free_bytes", "Free space of Redis's disk.", int(disk_free) * 1024))
        return figures + [
            Live("tlm_jobs", "Jobs by state.", count, {"state": state})
            for state, count in zip(State, counts, strict=True)
        ]

    def now(self) -> float:
        """Return the time of the Redis server in Unix seconds. All times in the store are by this clock."""
        seconds, microseconds = self._redis.time()
        return float(seconds + microseconds / 1e6)

    # --- records -----------------------------------------------------------------------------------------------

    def get(self, tenant: str, job_id: str) -> JobRecord:
        """Return the record of a job. Raises NotFound."""
        fields = self._redis.hgetall(key(tenant, "job", job_id))
        if not fields:
            raise _no_job(job_id)
        return _record(fields)

    def state(self, tenant: str, job_id: str) -> State:
        """Return the state of a job, for frequent reads. Raises NotFound."""
        state = self._redis.hget(key(tenant, "job", job_id), "state")
        if state is None:
            raise _no_job(job_id)
        return State(state)

    def must_stop(self, tenant: str, job_id: str) -> tuple[bool, bool]:
        """Return whether a job does not run, and whether its workers' machine stops. For frequent reads.

        Raises NotFound.
        """
        state, draining = self._redis.hmget(key(tenant, "job", job_id), "state", "draining")
        if state is None:
            raise _no_job(job_id)
        return state != State.RUNNING, draining is not None

    def list_jobs(
        self,
        tenant: str,
        *,
        state: State | None = None,
        kind: str | None = None,
        datasets: Sequence[str] | None = None,
        labels: Sequence[tuple[str, str]] = (),
        search: str = "",
        after: str | None = None,
        limit: int = 20,
    ) -> tuple[list[JobRecord], bool]:
        """Return the jobs older than `after`, newest first, and whether there are more.

        A job must match every filter, and one of `datasets` (ids). search: a part of the name, or the start of the id
        with or without `job_`.
        """
        filters = [key(tenant, "state", state)] if state else []
        filters += [key(tenant, "kind", kind)] if kind else []
        filters += [key(tenant, "label", digest_of(pair)) for pair in labels]
        on_datasets = None if datasets is None else [key(tenant, "on", dataset) for dataset in datasets]
        only = self._matching(tenant, search) if search else None
        ids = self._ids(filters or [key(tenant, "jobs")], on_datasets, only, after, limit + 1)
        return self._records(tenant, ids[:limit]), len(ids) > limit

    def newest_in(self, tenant: str, state: State, limit: int) -> list[str]:
        """Return the ids of the newest jobs in a state."""
        return self._ids([key(tenant, "state", state)], None, None, None, limit)

    def rates(self, tenant: str) -> dict[str, str]:
        """Return the rates that `save_rates` stored."""
        return dict(self._redis.hgetall(key(tenant, "rates")))

    def save_rates(self, tenant: str, rates: Mapping[str, str]) -> None:
        """Store measured rates by name. They outlive the jobs that they come from."""
        if rates:
            self._redis.hset(key(tenant, "rates"), mapping=dict(rates))

    def jobs_on_data(self, tenant: str, digest: str) -> list[JobRecord]:
        """Return all jobs whose dataset has these bytes. Only they can share an artifact."""
        ids = self._redis.zrange(key(tenant, "data", digest), 0, -1)
        return self._records(tenant, ids)

    def _matching(self, tenant: str, search: str) -> set[str]:
        names, text = self._redis.hgetall(key(tenant, "names")), search.casefold()
        ids = {job_id for job_id, name in names.items() if text in name.casefold()}
        for start in (search, f"job_{search}"):
            ids.update(self._redis.zrange(key(tenant, "jobs"), f"[{start}", f"[{start}\x7f", bylex=True))
        return ids

    def _ids(
        self, all_of: list[str], any_of: list[str] | None, only: set[str] | None, after: str | None, limit: int
    ) -> list[str]:
        """Return members of sorted sets whose scores are all 0, in descending order.

        It reads the smallest set in pages, because an intersection of whole sets would block Redis for all others.
        """
        if any_of == []:
            return []
        if any_of is not None and len(any_of) == 1:
            all_of, any_of = [*all_of, *any_of], None
        others = sorted(all_of, key=self._redis.zcard)
        size = _PAGE if any_of or only is not None or len(others) > 1 else limit
        smallest, start, members = others.pop(0), f"({after}" if after else "+", list[str]()
        while len(members) < limit and (
            page := self._redis.zrange(smallest, start, "-", desc=True, bylex=True, offset=0, num=size)
        ):
            start = f"({page[-1]}"
            matches = [self._are_members(page, other) for other in others]
            if any_of is not None:
                unions = [self._are_members(page, other) for other in any_of]
                matches.append([any(of_one) for of_one in zip(*unions, strict=True)])
            rows = zip(page, *matches, strict=True)
            members += [member for member, *in_others in rows if all(in_others) and (only is None or member in only)]
        return members[:limit]

    def _are_members(self, members: Sequence[str], place: str) -> list[bool]:
        return [score is not None for score in self._redis.zmscore(place, members)]

    def _records(self, tenant: str, ids: Sequence[str]) -> list[JobRecord]:
        pipe = self._redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hgetall(key(tenant, "job", job_id))
        rows = zip(ids, pipe.execute(raise_on_error=False), strict=True)
        return [
            _listed(tenant, job_id, {} if isinstance(fields, Exception) else fields)
            for job_id, fields in rows
            if fields
        ]

    # --- events, metrics, logs ---------------------------------------------------------------------------------

    def events(self, tenant: str, job_id: str, *, after: int = 0, limit: int = 100) -> list[Event]:
        """Return the events with seq > after, in order."""
        rows = self._rows(tenant, job_id, "events", f"{after}-0", limit)
        return [
            Event(
                seq=int(stream_id.split("-")[0]),
                type=fields["type"],
                at=float(fields["at"]),
                attempt=int(fields["attempt"]),
                data=json.loads(fields["data"]),
            )
            for stream_id, fields in rows
        ]

    def metrics(self, tenant: str, job_id: str, *, after: str = "0", limit: int = 1000) -> list[MetricPoint]:
        """Return metric points after stream id `after`, in order."""
        return [
            {
                "id": stream_id,
                "attempt": int(fields["attempt"]),
                "at": float(fields["at"]),
                **json.loads(fields["data"]),
            }
            for stream_id, fields in self._rows(tenant, job_id, "metrics", after, limit)
        ]

    def logs(self, tenant: str, job_id: str, *, after: str = "0", limit: int = 1000) -> list[LogLine]:
        """Return log lines after stream id `after`, in order."""
        return _log_lines(self._rows(tenant, job_id, "logs", after, limit))

    def last_logs(self, tenant: str, job_id: str, count: int, *, after: str = "0") -> list[LogLine]:
        """Return the last `count` log lines after stream id `after`, in order."""
        return _log_lines(self._rows(tenant, job_id, "logs", after, count, last=True))

    def _rows(self, tenant: str, job_id: str, stream: str, after: str, limit: int, *, last: bool = False) -> list[Row]:
        """Return the first or the last entries after an id, from the storage and Redis."""
        name = key(tenant, stream, job_id)
        while True:
            pipe = self._redis.pipeline(transaction=True)
            pipe.hget(key(tenant, "job", job_id), "history")
            if last:
                pipe.xrevrange(name, min=f"({after}", count=limit)
            else:
                pipe.xrange(name, f"({after}", "+", count=limit)
            moved, rows = pipe.execute()
            rows = list(reversed(rows)) if last else list(rows)
            if moved is None or self._history is None or (last and len(rows) == limit):
                return rows
            try:
                rows = self._history.read(Moved.model_validate_json(moved), stream, after) + rows
                return rows[-limit:] if last else rows[:limit]
            except NotFound:
                if self._redis.hget(key(tenant, "job", job_id), "history") == moved:
                    raise

    # --- moving old entries to the storage ------------------------------------------------------------------------

    def mark_streams(self) -> None:
        """Mark the jobs that have streams, so that `move_marked` moves those that an earlier release wrote, too."""
        for name in self._redis.scan_iter(key("*", "events", "*"), count=1000):
            self._redis.sadd(TO_MOVE, "/".join(name.removeprefix(f"{PREFIX}:{{").split("}:events:")))

    def move_marked(self, count: int = 100) -> int:
        """Move the streams of marked jobs to the storage. Returns how many jobs that were."""
        members = self._redis.srandmember(TO_MOVE, count)
        for member in members:
            with self._skipping(TO_MOVE, member):
                self._move_streams(*member.split("/", 1))
        return len(members)

    @contextmanager
    def _skipping(self, place: str, member: str) -> Iterator[None]:
        """Skip a job whose record or history is damaged. `mark_streams` marks it again."""
        try:
            yield
        except (CorruptArtifact, NotFound, UnreadableRecord, ValueError) as error:
            log.error("Cannot move or archive job %s: %s", member, error)
            self._redis.srem(place, member) if place == TO_MOVE else self._redis.zrem(place, member)

    def _move_streams(self, tenant: str, job_id: str) -> None:
        """Move the metrics and the log of a job to the storage, and the events too if it has ended."""
        assert self._history is not None, "only processes with a storage move streams"
        record, names = key(tenant, "job", job_id), {stream: key(tenant, stream, job_id) for stream in STREAMS}
        pipe = self._redis.pipeline(transaction=True)
        pipe.hmget(record, "state", "history")
        for name in names.values():
            pipe.xrange(name)
        (state, stored), *streams = pipe.execute()
        rows = {stream: entries for stream, entries in zip(STREAMS, streams, strict=True) if entries}
        if state not in TERMINAL:
            rows.pop("events", None)
        earlier = Moved.model_validate_json(stored) if stored else None
        moved = self._history.write(tenant, job_id, earlier, rows) if rows else earlier
        body = moved.model_dump_json() if moved else ""
        last = [_following(rows[stream][-1][0]) if stream in rows else "" for stream in STREAMS]
        args = [f"{tenant}/{job_id}", stored or "", body, _TERMINAL_JSON, *last]
        replaced = self._run("moved", [record, TO_MOVE, ENDED, *names.values()], args)
        unused = earlier if replaced else moved
        if rows and unused is not None:
            self._history.delete(unused)

    def archive_ended(self, seconds: float = ARCHIVE_SECONDS, count: int = 100) -> int:
        """Compress the records of jobs that ended at least `seconds` ago. Returns how many jobs that were."""
        members = self._redis.zrangebyscore(ENDED, "-inf", self.now() - seconds, start=0, num=count)
        for member in members:
            with self._skipping(ENDED, member):
                self._archive(*member.split("/", 1))
        return len(members)

    def _archive(self, tenant: str, job_id: str) -> None:
        """Compress a record, and end the reuse of its artifacts and checkpoints by new jobs."""
        record = key(tenant, "job", job_id)
        fields = self._redis.hgetall(record)
        nodes = json.loads(fields.get("result", "{}")).get("artifacts", {}).values()
        refs = [(node["artifact"], canonical_json(node["ref"])) for node in nodes]
        lists = {artifact: self._redis.lrange(key(tenant, "checkpoints", artifact), 0, -1) for artifact, _ in refs}
        own = [(artifact, body) for artifact, bodies in lists.items() for body in bodies if job_id in body]
        fields = {name: value for name, value in fields.items() if name not in _UNPACKED}
        names = list(fields)
        fields |= {"checkpoints": canonical_json([json.loads(body) for _, body in own])} if own else {}
        keys = [record, key(tenant, "job-artifacts", job_id), ENDED, key(tenant, "artifacts")]
        args = [f"{tenant}/{job_id}", packed(fields) if names else "", *map(canonical_json, (names, refs, own))]
        self._run("archive", keys, [*args, key(tenant, "checkpoints", "")])

    # --- verbs of the user -------------------------------------------------------------------------------------

    def submit(
        self,
        tenant: str,
        spec: JobSpec,
        resolved: Resolved,
        *,
        idempotency_key: str | None = None,
        origin: Origin | None = None,
        needs: Sequence[str] = (),
    ) -> tuple[JobRecord, bool]:
        """Create a job durably. Returns the record and whether it is new.

        The same idempotency key with the same spec returns the earlier job. origin: the job that this one is derived
        from. needs: keys of the records that must exist. Raises IdempotencyMismatch if the key belongs to another
        spec, NotFound if a needed record is gone.
        """
        self.check_space()
        job_id = new_id("job")
        fields = {
            "id": job_id,
            "tenant": tenant,
            "spec": spec.model_dump_json(),
            "resolved": resolved.model_dump_json(),
            "request_id": request_id() or "",
        }
        if origin is not None:
            fields["origin"] = origin.model_dump_json()
        keys = [
            key(tenant, "job", job_id),
            key(tenant, "events", job_id),
            key(tenant, "idem", digest_of(idempotency_key)) if idempotency_key else "",
            QUEUE,
            FEED,
            key(tenant, "names"),
            *_indexes(tenant, spec, resolved),
            key(tenant, "state", "queued"),
        ]
        args: list[str | float] = [
            job_id,
            f"{tenant}/{job_id}",
            canonical_json(fields),
            canonical_json({"kind": spec.kind} | (origin.model_dump() if origin else {})),
            _request_digest(spec, origin),
            _IDEMPOTENCY_SECONDS,
            spec.priority,
            key(tenant, "job", ""),
            _MAX_FEED_ENTRIES,
            canonical_json(list(needs)),
            spec.name or "",
        ]
        outcome, answer = self._run("submit", keys, args)
        if outcome == "mismatch":
            raise _mismatch(answer)
        if outcome == "gone":
            name = answer.rsplit(":", 1)[-1]
            raise NotFound(f"Dataset {name} was deleted during the submission. Upload it again.")
        return self.get(tenant, answer), outcome == "created"

    def submitted_with(
        self, tenant: str, spec: JobSpec, idempotency_key: str, origin: Origin | None = None
    ) -> JobRecord | None:
        """Return the job that was submitted with this idempotency key, or None.

        A repeated request needs no look-up of its names: its dataset may be gone. Raises IdempotencyMismatch if the
        key belongs to another spec.
        """
        body = self._redis.get(key(tenant, "idem", digest_of(idempotency_key)))
        if body is None:
            return None
        earlier = json.loads(body)
        try:
            job = self.get(tenant, earlier["id"])
        except NotFound:  # The job was deleted, so the key is free again.
            return None
        if earlier["digest"] != _request_digest(spec, origin):
            raise _mismatch(earlier["id"])
        return job

    def pause(self, tenant: str, job_id: str) -> JobRecord:
        """Pause a job. A queued job is paused at once; a running one once its workers have written a checkpoint."""
        return self._move(Verb.PAUSE, tenant, job_id, "job.pause_requested")

    def resume(self, tenant: str, job_id: str) -> JobRecord:
        return self._move(Verb.RESUME, tenant, job_id, "job.resumed")

    def cancel(self, tenant: str, job_id: str) -> JobRecord:
        """Cancel a job. It is `cancelling` until nothing of it runs. A second cancel has no effect."""
        try:
            return self._move(Verb.CANCEL, tenant, job_id, "job.cancel_requested")
        except IllegalTransition:
            record = self.get(tenant, job_id)
            if record.state in (State.CANCELLING, State.CANCELLED):
                return record
            raise

    # --- verbs of the coordinator ------------------------------------------------------------------------------

    def claim(self, owner: str, lease_seconds: float, which: Claimable = "any") -> JobRecord | None:
        """Claim a job whose lease has expired (same attempt), else the next job of the queue (next attempt).

        which: "leased" claims only a job whose lease has expired; "stopping" only such a job that pauses or cancels.
        """
        args: list[str | float] = [owner, lease_seconds, PREFIX, MAX_PRIORITY, _MAX_FEED_ENTRIES, which]
        member = self._run("claim", [QUEUE, LEASES, FEED], args)
        return None if member is None else self.get(*member.split("/", 1))

    def positions(self, jobs: Sequence[JobRecord]) -> dict[str, int]:
        """Return the rank of queued jobs in the order of their start, from 1, by id."""
        if not jobs:
            return {}
        priorities = range(MAX_PRIORITY, -MAX_PRIORITY - 1, -1)
        pipe = self._redis.pipeline(transaction=False)
        for priority in priorities:
            pipe.zcard(_queue(priority))
        for job in jobs:
            pipe.zrank(_queue(job.priority), f"{job.tenant}/{job.id}")
        numbers = pipe.execute()
        sizes, ranks = numbers[: len(priorities)], numbers[len(priorities) :]
        first = {priority: sum(sizes[:index]) + 1 for index, priority in enumerate(priorities)}
        return {job.id: first[job.priority] + rank for job, rank in zip(jobs, ranks, strict=True) if rank is not None}

    def leases(self) -> dict[str, float]:
        """Return the expiry of the lease of each active job, by 'tenant/job id'."""
        return dict(self._redis.zrange(LEASES, 0, -1, withscores=True))

    def renew(self, tenant: str, job_id: str, owner: str, lease_seconds: float) -> bool:
        """Renew the lease. Returns False if another owner holds the job; then this owner must not write.

        A lease of 0 s has expired: another coordinator can adopt the job at once.
        """
        keys = [key(tenant, "job", job_id), LEASES]
        return bool(self._run("renew", keys, [owner, lease_seconds, f"{tenant}/{job_id}", _MAX_COUNTED_SECONDS]))

    def confirm_paused(self, job: JobRecord, owner: str) -> JobRecord:
        return self._move_owned(Verb.CONFIRM_PAUSED, job, owner, "job.paused")

    def confirm_cancelled(self, job: JobRecord, owner: str) -> JobRecord:
        return self._move_owned(Verb.CONFIRM_CANCELLED, job, owner, "job.cancelled")

    def finish(self, job: JobRecord, owner: str, result: Mapping[str, object]) -> JobRecord:
        changes = {"result": canonical_json(result), "error": None}
        return self._move_owned(Verb.FINISH, job, owner, "job.succeeded", changes=changes)

    def fail(self, job: JobRecord, owner: str, error: TLMError) -> JobRecord:
        changes, data = _failure(job, error), without_details(error.as_dict())
        return self._move_owned(Verb.FAIL, job, owner, "job.failed", changes=changes, data=data)

    def requeue(self, job: JobRecord, owner: str, error: TLMError, delay_seconds: float) -> JobRecord:
        """End the attempt. The job can be claimed again after the delay."""
        data = {**without_details(error.as_dict()), "delay_seconds": delay_seconds}
        changes = _failure(job, error)
        return self._move_owned(
            Verb.REQUEUE, job, owner, "job.requeued", changes=changes, data=data, delay=delay_seconds
        )

    # --- verbs of an attempt (a worker, or the coordinator on its behalf) ----------------------------------------

    def report(
        self,
        tenant: str,
        job_id: str,
        attempt: int,
        *,
        progress: Progress | None = None,
        metrics: Sequence[Mapping[str, object]] = (),
        events: Sequence[tuple[str, Mapping[str, object]]] = (),
        logs: Sequence[str] = (),
        submissions: Mapping[str, str | None] | None = None,
        publication: _Publication | None = None,
        excluded_from_cache: str = "",
        beat: tuple[str, Beat] | None = None,
        draining: bool = False,
    ) -> State:
        """Record what an attempt does. Returns the job's state, from which a worker learns that it must stop.

        submissions: group → submission id, or None to delete it; other groups stay. beat: of a group's workers.
        draining: the workers must write a checkpoint and end, because a machine of theirs stops. Only `publish` and
        `publish_checkpoint` pass publication and excluded_from_cache. Raises StaleAttempt if the attempt has ended;
        then the caller must stop writing.
        """
        published = publication or _Publication("", "")
        checkpoints = key(tenant, "checkpoints", published.artifact) if published.is_checkpoint else ""
        keys = [key(tenant, name, job_id) for name in ("job", "events", "metrics", "logs")]
        keys += [key(tenant, "artifacts"), checkpoints, key(tenant, "job-artifacts", job_id), TO_MOVE]
        args: list[str | float] = [
            attempt,
            _ACTIVE_JSON,
            progress.model_dump_json() if progress else "",
            canonical_json([canonical_json(point) for point in metrics]),
            canonical_json([[kind, canonical_json(data)] for kind, data in events]),
            canonical_json(list(logs)),
            published.artifact,
            published.body,
            _MAX_LOG_LINES,
            canonical_json(submissions) if submissions is not None else "",
            excluded_from_cache,
            canonical_json([beat[0], beat[1].model_dump(exclude={"at"})]) if beat else "",
            "1" if draining else "",
            f"{tenant}/{job_id}",
            _MOVED_LINES,
        ]
        return State(self._check(Verb.REPORT, job_id, self._run("report", keys, args)))

    # --- artifacts and checkpoints -----------------------------------------------------------------------------

    def artifact(self, tenant: str, artifact: str) -> ManifestRef | None:
        """Return the reference of a published artifact, or None. It does not check the files."""
        return self.artifacts(tenant, [artifact])[0]

    def artifacts(self, tenant: str, artifacts: Sequence[str]) -> list[ManifestRef | None]:
        """Return the reference of each artifact, or None where it does not exist, in one round trip."""
        bodies = self._redis.hmget(key(tenant, "artifacts"), list(artifacts)) if artifacts else []
        return [None if body is None else ManifestRef.model_validate_json(body) for body in bodies]

    def publish(
        self,
        tenant: str,
        job_id: str,
        attempt: int,
        *,
        artifact: str,
        ref: ManifestRef,
        node: str,
        stage: str,
        cached: bool = True,
    ) -> ManifestRef:
        """Publish an artifact. Returns the reference in force: the first one published. Raises StaleAttempt.

        cached: False excludes the node from the cache, so that no other job reuses its artifact.
        """
        event = ("artifact.published", {"artifact": artifact, "node": node, "stage": stage, "digest": ref.digest})
        publication = _Publication(artifact, canonical_json(ref.model_dump(mode="json")))
        excluded = "" if cached else node
        self.report(tenant, job_id, attempt, events=[event], publication=publication, excluded_from_cache=excluded)
        published = self.artifact(tenant, artifact)
        assert published is not None, "the report above has set it"
        return published

    def invalidate_artifact(
        self, tenant: str, artifact: str, ref: ManifestRef | None = None, *, by: JobRecord | None = None
    ) -> None:
        """Unpublish an artifact, so that its stage runs again. ref: do so only if this reference is still in force.

        by: the job whose attempt does it; None on deletion. Raises StaleAttempt if the attempt has ended.
        """
        body = canonical_json(ref.model_dump(mode="json")) if ref else ""
        self._unpublish(key(tenant, "artifacts"), artifact, body, by)

    def _unpublish(self, place: str, artifact: str, body: str, by: JobRecord | None) -> None:
        keys = [place, key(by.tenant, "job", by.id) if by else ""]
        answer = self._run("invalidate", keys, [artifact, body, by.attempt if by else "", _ACTIVE_JSON])
        self._check(Verb.REPORT, by.id if by else "", answer)

    def checkpoints(self, tenant: str, artifact: str) -> list[CheckpointRef]:
        """Return the published checkpoints for an artifact by step. Several jobs may have written them."""
        bodies = self._redis.lrange(key(tenant, "checkpoints", artifact), 0, -1)
        return sorted((CheckpointRef.model_validate_json(body) for body in bodies), key=lambda ref: ref.step)

    def publish_checkpoint(self, tenant: str, artifact: str, checkpoint: CheckpointRef) -> None:
        """Publish a checkpoint. Raises StaleAttempt if its attempt has ended."""
        data = {"node": checkpoint.node, "step": checkpoint.step, "metrics": checkpoint.metrics}
        body = canonical_json(checkpoint.model_dump(mode="json"))
        publication = _Publication(artifact, body, is_checkpoint=True)
        event = ("checkpoint.published", data)
        self.report(tenant, checkpoint.job, checkpoint.attempt, events=[event], publication=publication)

    def drop_checkpoint(
        self, tenant: str, artifact: str, checkpoint: CheckpointRef, *, by: JobRecord | None = None
    ) -> None:
        """Unpublish a checkpoint. Afterwards its files may be deleted. by: see `invalidate_artifact`."""
        self._unpublish(
            key(tenant, "checkpoints", artifact), "", canonical_json(checkpoint.model_dump(mode="json")), by
        )

    def artifacts_of(self, tenant: str, job_id: str) -> set[str]:
        """Return the ids of the artifacts that the job has published or written checkpoints for."""
        return set(self._redis.smembers(key(tenant, "job-artifacts", job_id)))

    def is_empty(self) -> bool:
        """Return whether there was never a dataset, corpus, or job of any tenant. Then the storage holds no files."""
        if self._redis.exists(FEED, REMOVALS):
            return False
        scans = (self._redis.scan_iter(key("*", kind), count=10_000) for kind in ("datasets", "corpora"))
        return not any(any(keys) for keys in scans)

    def named_folders(self, tenant: str) -> set[str]:
        """Return every folder of the storage that a record of a tenant names, and all that contain it."""
        folders: set[str] = set()
        for name in self._redis.scan_iter(key(tenant, "*"), count=1000):
            match self._redis.type(name):
                case "hash":
                    texts = list(unpacked(self._redis.hgetall(name)).values())
                    texts += [self._redis.hget(name, "history") or ""]
                case "list":
                    texts = self._redis.lrange(name, 0, -1)
                case "string":
                    texts = [self._redis.get(name) or ""]
                case _:
                    continue
            if name.startswith(prefix := key(tenant, "upload", "")):
                texts.append(f'"folder":"{tenant}/parts/{name.removeprefix(prefix)}"')
            folders.update(folder for text in texts for folder in _FOLDER.findall(text))
        return {f"{folder}/"[:end] for folder in folders for end, sign in enumerate(f"{folder}/") if sign == "/"}

    def orphans(self, folders: Collection[str], seconds: float) -> list[str]:
        """Note folders that no record names. Returns those that have been noted for `seconds` and are forgotten now."""
        now, noted = self.now(), self._redis.hgetall(ORPHANS)
        due = [folder for folder in folders if now - float(noted.get(folder, now)) >= seconds]
        if gone := [*due, *(noted.keys() - set(folders))]:
            self._redis.hdel(ORPHANS, *gone)
        if new := [folder for folder in folders if folder not in noted]:
            self._redis.hset(ORPHANS, mapping=dict.fromkeys(new, now))
        return due

    # --- deletion ----------------------------------------------------------------------------------------------

    def delete(self, job: JobRecord, removal: Removal) -> None:
        """Delete a finished job with its events, metrics, and logs, and record what remains to be deleted.

        Raises IllegalTransition or NotFound.
        """
        tenant = job.tenant
        own_keys = (key(tenant, name, job.id) for name in ("job", "events", "metrics", "logs", "job-artifacts"))
        keys = [*own_keys, REMOVALS, key(tenant, "names"), *_indexes(tenant, job.spec, job.resolved)]
        keys += [key(tenant, "state", state) for state in sorted(TERMINAL)]
        args = [job.id, _TERMINAL_JSON, removal.member, canonical_json(asdict(removal))]
        match self._run("delete", keys, args):
            case ["missing"]:
                raise _no_job(job.id)
            case ["state", state]:
                raise IllegalTransition(f"Job {job.id} is {state}. Cancel it before you delete it.", state=state)

    def drop_dataset(self, tenant: str, dataset_id: str, name: str, removal: Removal) -> None:
        """Delete the record of a dataset, and record what remains to be deleted.

        Raises Conflict if an unfinished job needs it.
        """
        parts = (("dataset", dataset_id), ("datasets",), ("dataset-name", name), ("on", dataset_id))
        unfinished = sorted(set(State) - TERMINAL)
        keys = [
            *(key(tenant, *part) for part in parts),
            REMOVALS,
            *(key(tenant, "state", state) for state in unfinished),
        ]
        args = [dataset_id, removal.member, canonical_json(asdict(removal)), *unfinished]
        match self._run("drop_dataset", keys, args):
            case ["busy", job, state]:
                raise Conflict(f"Job {job} is {state} and needs this dataset. Cancel the job first.", job=job)

    def inherit_artifacts(self, job: JobRecord, artifacts: Iterable[str]) -> None:
        """Make a job own artifacts of a deleted job that it shares, so that they are deleted with it."""
        job_artifacts = key(job.tenant, "job-artifacts", job.id)
        self._redis.sadd(job_artifacts, *artifacts)
        if not self._redis.exists(key(job.tenant, "job", job.id)):  # It was deleted a moment ago.
            self._redis.delete(job_artifacts)

    def removals(self) -> list[Removal]:
        """Return what remains to be deleted, for all tenants."""
        return [Removal(**json.loads(body)) for body in self._redis.hvals(REMOVALS)]

    def removed(self, removal: Removal) -> None:
        """Record that a removal is complete."""
        self._redis.hdel(REMOVALS, removal.member)

    # --- scripts -----------------------------------------------------------------------------------------------

    def _run(self, script: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        return self._script[script](keys=list(keys), args=list(args))

    def _move_owned(self, verb: Verb, job: JobRecord, owner: str, event: str, **kwargs: Any) -> JobRecord:
        """Apply a verb that only the owner of the current attempt may apply."""
        return self._move(verb, job.tenant, job.id, event, owner=owner, attempt=job.attempt, **kwargs)

    def _move(
        self,
        verb: Verb,
        tenant: str,
        job_id: str,
        event: str,
        *,
        owner: str = "",
        attempt: int | None = None,
        changes: Mapping[str, str | None] | None = None,
        data: Mapping[str, object] | None = None,
        delay: float = 0.0,
    ) -> JobRecord:
        job, events, states = key(tenant, "job", job_id), key(tenant, "events", job_id), key(tenant, "state", "")
        keys = [job, events, QUEUE, LEASES, states, FEED, TO_MOVE]
        args: list[str | float] = [
            job_id,
            f"{tenant}/{job_id}",
            canonical_json(dict(TRANSITIONS[verb].moves)),
            owner,
            "" if attempt is None else attempt,
            canonical_json(changes or {}),
            event,
            canonical_json(data or {}),
            delay,
            _MAX_FEED_ENTRIES,
            _MAX_COUNTED_SECONDS,
        ]
        self._check(verb, job_id, self._run("move", keys, args))
        return self.get(tenant, job_id)

    @staticmethod
    def _check(verb: Verb, job_id: str, answer: list[str]) -> str:
        """Return the state in a script's answer, or raise the error that the answer stands for."""
        match answer:
            case ["ok", state]:
                return state
            case ["missing"]:
                raise _no_job(job_id)
            case ["state", state]:
                raise IllegalTransition(f"Cannot {verb} job {job_id}: it is {state}, not {allowed(verb)}.", state=state)
            case ["stale", attempt, *_]:
                raise StaleAttempt(
                    f"Cannot {verb} job {job_id}: attempt {attempt} is current, or another owner holds the job. "
                    "Stop writing."
                )
        raise Conflict(
            f"The job store returned an unexpected answer ({answer}) to '{verb}' of job {job_id}. "
            "Run the same release in all processes."
        )


def _indexes(tenant: str, spec: JobSpec, resolved: Resolved) -> list[str]:
    """Return the keys of the lists that a job stays in until it is deleted."""
    return [
        key(tenant, "jobs"),
        key(tenant, "kind", spec.kind),
        *(key(tenant, "on", data.id) for data in resolved.datasets),
        *(key(tenant, "data", digest) for digest in sorted({data.ref.digest for data in resolved.datasets})),
        *(key(tenant, "label", digest_of(pair)) for pair in sorted(spec.metadata.items())),
    ]


def _queue(priority: int) -> str:
    return f"{QUEUE}:{priority}" if priority else QUEUE


def _record(fields: Mapping[str, str]) -> JobRecord:
    try:
        fields = unpacked(fields)
        return JobRecord.model_validate({k: json.loads(v) if k in _JSON_FIELDS else v for k, v in fields.items()})
    except ValidationError as error:
        first = error.errors()[0]
        raise UnreadableRecord(
            f"Another release of the service wrote job {fields.get('id')}: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}. Run the newest release in all processes."
        ) from error
    except (ValueError, zlib.error) as error:
        raise UnreadableRecord(f"The record of job {fields.get('id')} is damaged: {error}. Restore it.") from error


def _listed(tenant: str, job_id: str, fields: Mapping[str, str]) -> JobRecord:
    """Return the record, or for an unreadable one a stub with the error: one bad record must not hide the others."""
    try:
        return _record(fields)
    except UnreadableRecord as error:
        state = fields.get("state", "")
        return JobRecord(
            id=job_id,
            tenant=tenant,
            state=State(state) if state in set(State) else State.FAILED,
            spec=JobSpec(dataset="unreadable"),
            resolved=Resolved(
                dataset_id="unreadable", dataset=ManifestRef(folder="", digest=""), recipe=resolve("fast", "tiny")
            ),
            created_at=0.0,
            updated_at=0.0,
            error=error.as_dict(),
            unreadable=True,
        )


def _log_lines(entries: Iterable[tuple[str, Mapping[str, str]]]) -> list[LogLine]:
    return [
        {"id": stream_id, "attempt": int(fields["attempt"]), "at": float(fields["at"]), "line": fields["line"]}
        for stream_id, fields in entries
    ]


def _following(stream_id: str) -> str:
    """Return the least stream id after this one."""
    milliseconds, number = position(stream_id)
    return f"{milliseconds}-{number + 1}"


def _failure(job: JobRecord, error: TLMError) -> dict[str, str | None]:
    failures, losses = job.spent(is_loss=error.is_loss)
    return {"error": canonical_json(error.as_dict()), "failures": str(failures), "losses": str(losses)}


def _request_digest(spec: JobSpec, origin: Origin | None) -> str:
    # The record of a pruning job has fields that come from the pruned job; the request for it has not.
    request = spec.model_dump(mode="json", exclude=set(FROM_JOB) if spec.source_job else None)
    return digest_of([request, origin.model_dump() if origin else None])


def _no_job(job_id: str) -> NotFound:
    return NotFound(f"No job '{job_id}'. List the jobs to see their ids.")


def _mismatch(job_id: str) -> IdempotencyMismatch:
    return IdempotencyMismatch(
        f"This Idempotency-Key belongs to {job_id}, which has another body. Use a new key for a new job.", job=job_id
    )
