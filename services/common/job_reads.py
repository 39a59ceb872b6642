"""Read jobs from Redis: records, lists, and their streams of events, metrics and log lines."""

from __future__ import annotations

import json
import logging
import math
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, TypedDict

import redis
from pydantic import TypeAdapter, ValidationError

from services.common.catalog_records import needs_files
from services.common.history import REFS, History, Moved, Row, moved_ref, ref_of, unpacked
from services.common.metrics import Live
from services.common.redis_client import (
    DISK_FREE,
    FEED,
    LEASES,
    OBSTACLES,
    PREFIX,
    QUEUE,
    REMOVALS,
    TO_MOVE,
    free_bytes,
    key,
    unreadable,
)
from tlm_core.artifacts.hashing import digest_of
from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.errors import Conflict, CorruptArtifact, NotFound, StoreFull, UnreadableRecord
from tlm_core.jobs.spec import MAX_PRIORITY, Beat, Event, JobRecord, JobSpec, Resolved, ReusedArtifact
from tlm_core.jobs.states import TERMINAL, State
from tlm_core.training.recipe import resolve

log = logging.getLogger(__name__)

_JSON_FIELDS = frozenset(
    {"spec", "resolved", "origin", "submissions", "beats", "excluded_from_cache", "checkpoints", "published"}
    | {"progress", "waiting", "error", "result"}
)
_BEATS = TypeAdapter(dict[str, Beat])
_FOLDER = re.compile(r'"folder": ?"([^"]+)"')  # in the JSON of a record
_ARTIFACT = re.compile(r'"artifact": ?"([^"]+)"')  # in the JSON of a result
OBSTACLE_SECONDS = 30  # A report of a coordinator expires after this time.
_ALL = 1_000_000  # more than the entries of any stream
_PAGE = 1000  # members of a set that one command reads
_HEAD = 100  # members of a queue among which the metrics look for a job that can start

# Has `id` of the stream entry, `attempt`, `at` (Unix seconds), and the values that the worker reported.
MetricPoint = dict[str, str | float | None]


class LogLine(TypedDict):
    """A line of a job's log. id: the id of its stream entry. at: Unix seconds."""

    id: str
    attempt: int
    at: float
    line: str


class JobReads:
    """The read operations of `JobStore`. history: reads the older entries of streams from the storage.

    `events`, `metrics`, `logs`, `last_logs`, `moved_refs` and `result_of` also read the storage. If the entries there
    are unreadable, these methods raise NotFound, CorruptArtifact or StorageUnavailable.
    """

    def __init__(self, client: redis.Redis, history: History | None = None) -> None:
        self._history = history
        # redis-py types each answer as bytes, text, or awaitable; with decode_responses it is text.
        self._redis: Any = client

    def ping(self) -> None:
        self._redis.ping()

    def now(self) -> float:
        """Return the time of the Redis server in Unix seconds. All times in the store are by this clock."""
        seconds, microseconds = self._redis.time()
        return float(seconds + microseconds / 1e6)

    def obstacle(self) -> str:
        """Return why no coordinator starts queued jobs, or "" if at least one coordinator starts them."""
        now = self.now()
        reports = map(read_report, self._redis.hvals(OBSTACLES))
        recent = [obstacle for at, obstacle in reports if now - at <= OBSTACLE_SECONDS]
        if not recent:
            return f"No coordinator has reported for {OBSTACLE_SECONDS} s. Start a coordinator, or read its log."
        return min(recent)  # "" sorts first

    def figures(self, tenant: str) -> list[Live]:
        """Return the metrics of queues, jobs, memory and disk, for Prometheus.

        While Redis is full, `tlm_redis_write_seconds` is missing.
        """
        queues = [queue_of(priority) for priority in range(-MAX_PRIORITY, MAX_PRIORITY + 1)]
        began, writes = time.perf_counter(), list[Live]()
        with suppress(StoreFull):
            self._redis.set(f"{PREFIX}:probe", "", ex=60)
            seconds = time.perf_counter() - began
            writes.append(Live("tlm_redis_write_seconds", "Time of a write to Redis, with its fsync.", seconds))
        pipe = self._redis.pipeline(transaction=False)
        pipe.info("memory").get(DISK_FREE).time().hlen(REMOVALS).scard(TO_MOVE)
        for state in State:
            pipe.zcard(key(tenant, "state", state))
        for queue in queues:
            pipe.zrange(queue, 0, _HEAD - 1, withscores=True)
        memory, disk_free, (now, _), removals, to_move, *rest = pipe.execute()
        counts, heads = rest[: len(State)], rest[len(State) :]
        due = self._without_delayed([entry for head in heads for entry in head], now)
        oldest = max((now - score for _, score in due), default=0.0)
        figures = [
            *writes,
            Live("tlm_queue_oldest_seconds", "Age of the oldest queued job that can start.", max(0.0, oldest)),
            Live("tlm_redis_memory_bytes", "Memory of Redis.", memory["used_memory"]),
            Live("tlm_redis_memory_limit_bytes", "Limit of the memory of Redis; 0: none.", memory["maxmemory"]),
            Live("tlm_removals", "Deletions that are not complete.", removals),
            Live("tlm_streams_to_move", "Jobs whose streams wait for the storage.", to_move),
        ]
        if (free := free_bytes(disk_free)) is not None:
            figures.append(Live("tlm_redis_disk_free_bytes", "Free space of Redis's disk.", free))
        return figures + [
            Live("tlm_jobs", "Jobs by state.", count, {"state": state})
            for state, count in zip(State, counts, strict=True)
        ]

    def _without_delayed(self, queued: Sequence[tuple[str, float]], now: float) -> list[tuple[str, float]]:
        """Return the entries of `queued`, ("TENANT/JOB ID", time of submission), whose jobs can start at `now`."""
        pipe = self._redis.pipeline(transaction=False)
        for member, _ in queued:
            tenant, job_id = member.split("/", 1)
            pipe.hget(key(tenant, "job", job_id), "due_at")
        return [entry for entry, due_at in zip(queued, pipe.execute(), strict=True) if _due(due_at) <= now]

    def get(self, tenant: str, job_id: str) -> JobRecord:
        """Return the record of a job. Raises NotFound."""
        fields = self._redis.hgetall(key(tenant, "job", job_id))
        if not fields:
            raise no_job(job_id)
        return _record(fields)

    def artifacts_of(self, tenant: str, job_id: str) -> set[str]:
        """Return the ids of the artifacts that the job has published or inherited, or for which it wrote checkpoints.

        A job inherits an artifact from a deleted job that shared it. The set includes the artifacts in the result of a
        succeeded job, even if the rest of the record is unreadable. Raises StorageUnavailable.
        """
        names = ("result", "packed", "history")
        pipe = self._redis.pipeline(transaction=True)
        pipe.smembers(key(tenant, "job-artifacts", job_id)).hmget(key(tenant, "job", job_id), names)
        artifacts, values = pipe.execute()
        fields = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        with suppress(ValueError, zlib.error):
            artifacts |= set(_ARTIFACT.findall(unpacked(fields).get("result", "")))
        if _has_refs(fields.get("history")):
            artifacts |= self._readable_refs(tenant, job_id).keys()
        return set(artifacts)

    def moved_refs(self, tenant: str, job_id: str) -> list[dict[str, str]]:
        """Return one dict for each reference that moved from Redis to the storage when a job ended.

        Dicts of artifacts have the keys `node`, `artifact`, `folder`, `digest`. Dicts of checkpoints have `checkpoint`.
        """
        return [row for _, row in self._rows(tenant, job_id, REFS, "0", _ALL)]

    def result_of(self, job: JobRecord) -> dict[str, ReusedArtifact]:
        """Return the artifacts of a succeeded job: node name → artifact. Returns {} for other jobs."""
        if job.result is None or job.result.artifacts:
            return job.result.artifacts if job.result else {}
        rows = (row for row in self.moved_refs(job.tenant, job.id) if "artifact" in row)
        return {row["node"]: ReusedArtifact(artifact=row["artifact"], ref=moved_ref(row)) for row in rows}

    def published_by(self, job: JobRecord) -> dict[str, ManifestRef]:
        """Return artifact id → reference from an ended job's `published` or `moved_refs`. Raises StorageUnavailable."""
        if job.published or job.state not in TERMINAL:
            return job.published
        return self._readable_refs(job.tenant, job.id)

    def _readable_refs(self, tenant: str, job_id: str) -> dict[str, ManifestRef]:
        """Return artifact id → reference from `moved_refs`, or {} if their file is lost or damaged."""
        try:
            rows = self.moved_refs(tenant, job_id)
        except (CorruptArtifact, NotFound) as error:
            log.error("Cannot read the references of job %s: %s", job_id, error)
            return {}
        return {row["artifact"]: moved_ref(row) for row in rows if "artifact" in row}

    def was_deleted(self, tenant: str, job_id: str) -> bool:
        """Return whether this job was deleted in the last week."""
        return bool(self._redis.exists(key(tenant, "deleted", job_id)))

    def state(self, tenant: str, job_id: str) -> State:
        """Return the state of a job. Reads no other field, so frequent calls are cheap. Raises NotFound."""
        state = self._redis.hget(key(tenant, "job", job_id), "state")
        if state is None:
            raise no_job(job_id)
        return State(state)

    def beats(self, tenant: str, job_id: str) -> dict[str, Beat]:
        """Return the last heartbeat of each group: group → heartbeat. Reads no other field of the record."""
        return _BEATS.validate_json(self._redis.hget(key(tenant, "job", job_id), "beats") or "{}")

    def must_stop(self, tenant: str, job_id: str) -> tuple[bool, bool]:
        """Return whether the state of a job is not `running`, and whether its workers must stop at a checkpoint.

        Reads only these two fields of the record, so frequent calls are cheap. Raises NotFound.
        """
        state, draining = self._redis.hmget(key(tenant, "job", job_id), "state", "draining")
        if state is None:
            raise no_job(job_id)
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
        """Return up to `limit` jobs older than the job `after`, newest first, and whether there are more.

        A job must match every filter. datasets: ids; a job must use at least one of them. labels: (key, value) pairs of
        the metadata. search: a part of the name, or the start of the id with or without `job_`.
        """
        filters = [key(tenant, "state", state)] if state else []
        filters += [key(tenant, "kind", kind)] if kind else []
        filters += [key(tenant, "label", digest_of(pair)) for pair in labels]
        on_datasets = None if datasets is None else [key(tenant, "on", dataset) for dataset in datasets]
        matches_search = partial(self._matches, tenant, search) if search else None
        ids = self._ids(filters or [key(tenant, "jobs")], on_datasets, matches_search, after, limit + 1)
        return self._records(tenant, ids[:limit]), len(ids) > limit

    def each_job(
        self,
        tenant: str,
        *,
        state: State | None = None,
        datasets: Sequence[str] | None = None,
        after: str | None = None,
        page: int = 100,
    ) -> Iterator[JobRecord]:
        """Yield all jobs that match the filters of `list_jobs`, newest first. Reads `page` jobs at once."""
        has_more = True
        while has_more:
            jobs, has_more = self.list_jobs(tenant, state=state, datasets=datasets, after=after, limit=page)
            if not jobs:
                return
            yield from jobs
            after = jobs[-1].id

    def newest_in(self, tenant: str, state: State, limit: int) -> list[str]:
        """Return the ids of the newest `limit` jobs in a state, newest first."""
        return self._ids([key(tenant, "state", state)], None, None, None, limit)

    def jobs_on_data(self, tenant: str, digest: str) -> Iterator[JobRecord]:
        """Yield all jobs on a dataset with this digest. Only jobs on the same data can share an artifact."""
        for ids in self._pages(key(tenant, "data", digest)):
            yield from self._records(tenant, ids)

    def ids_on_data(self, tenant: str, digests: Iterable[str]) -> set[str]:
        """Return the ids of all jobs on datasets with these digests. Does not read the records of the jobs."""
        return {job for digest in digests for ids in self._pages(key(tenant, "data", digest)) for job in ids}

    def _unfinished(self, tenant: str, place: str) -> tuple[str, str] | None:
        """Return (id, state) of one unfinished job in a sorted set of job ids, or None. place: key of the set."""
        for ids in self._pages(place):
            ended = [self._are_members(ids, key(tenant, "state", state)) for state in sorted(TERMINAL)]
            for job_id, *in_states in zip(ids, *ended, strict=True):
                state = None if any(in_states) else self._redis.hget(key(tenant, "job", job_id), "state")
                if state is not None and state not in TERMINAL:
                    return job_id, state
        return None

    def _pages(self, place: str) -> Iterator[list[str]]:
        """Yield lists of up to 1,000 members of the sorted set `place`, in ascending order. All scores are 0."""
        start = "-"
        while page := self._redis.zrange(place, start, "+", bylex=True, offset=0, num=_PAGE):
            yield page
            start = f"({page[-1]}"

    def positions(self, jobs: Sequence[JobRecord]) -> dict[str, int]:
        """Return job id → position in the queue, from 1, for each queued job in `jobs`. Delayed jobs also count."""
        priorities = range(MAX_PRIORITY, -MAX_PRIORITY - 1, -1)
        pipe = self._redis.pipeline(transaction=False)
        for priority in priorities:
            pipe.zcard(queue_of(priority))
        for job in jobs:
            pipe.zrank(queue_of(job.priority), f"{job.tenant}/{job.id}")
        numbers = pipe.execute()
        sizes, ranks = numbers[: len(priorities)], numbers[len(priorities) :]
        first = {priority: sum(sizes[:index]) + 1 for index, priority in enumerate(priorities)}
        return {job.id: first[job.priority] + rank for job, rank in zip(jobs, ranks, strict=True) if rank is not None}

    def leases(self) -> dict[str, float]:
        """Return when the lease of each active job expires: 'tenant/job id' → Unix seconds."""
        return dict(self._redis.zrange(LEASES, 0, -1, withscores=True))

    def delayed(self) -> list[tuple[str, str]]:
        """Return (tenant, job id) of the queued jobs that were requeued with a delay, even if the delay is over."""
        jobs: list[tuple[str, str]] = []
        for priority in range(-MAX_PRIORITY, MAX_PRIORITY + 1):
            members = (member for member, _ in self._redis.zscan_iter(queue_of(priority), count=_PAGE))
            while page := [tuple(member.split("/", 1)) for member in islice(members, _PAGE)]:
                pipe = self._redis.pipeline(transaction=False)
                for tenant, job_id in page:
                    pipe.hexists(key(tenant, "job", job_id), "due_at")
                jobs += [job for job, is_delayed in zip(page, pipe.execute(), strict=True) if is_delayed]
        return jobs

    def _matches(self, tenant: str, search: str, ids: Sequence[str]) -> list[bool]:
        """Return for each id whether it starts with `search` or `job_` + `search`, or the name contains `search`."""
        names, text = self._redis.hmget(key(tenant, "names"), ids), search.casefold()
        return [
            job_id.startswith((search, f"job_{search}")) or text in (name or "").casefold()
            for job_id, name in zip(ids, names, strict=True)
        ]

    def _ids(
        self,
        all_of: list[str],
        any_of: list[str] | None,
        matches_search: Callable[[Sequence[str]], list[bool]] | None,
        after: str | None,
        limit: int,
    ) -> list[str]:
        """Return up to `limit` ids that are in all sets `all_of` and in at least one set of `any_of`, descending.

        matches_search: returns for each id whether it matches. after: return only smaller ids. A condition that is None
        does not apply. All scores are 0. Reads the smallest set in pages, because ZINTER would block other clients.
        """
        if any_of == []:
            return []
        if any_of is not None and len(any_of) == 1:
            all_of, any_of = [*all_of, *any_of], None
        others = sorted(all_of, key=self._redis.zcard)
        size = _PAGE if any_of or matches_search or len(others) > 1 else min(limit, _PAGE)
        smallest, start, members = others.pop(0), f"({after}" if after else "+", list[str]()
        while len(members) < limit and (
            page := self._redis.zrange(smallest, start, "-", desc=True, bylex=True, offset=0, num=size)
        ):
            start = f"({page[-1]}"
            matches = [self._are_members(page, other) for other in others]
            if any_of is not None:
                unions = [self._are_members(page, other) for other in any_of]
                matches.append([any(of_one) for of_one in zip(*unions, strict=True)])
            if matches_search:
                matches.append(matches_search(page))
            members += [member for member, *holds in zip(page, *matches, strict=True) if all(holds)]
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

    def events(self, tenant: str, job_id: str, *, after: int = 0, limit: int = 100) -> list[Event]:
        """Return the first `limit` events with a number `seq` above `after`, in order."""
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
        """Return the first `limit` metric points after the stream id `after`, in order."""
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
        """Return the first `limit` log lines after the stream id `after`, in order."""
        return _log_lines(self._rows(tenant, job_id, "logs", after, limit))

    def last_logs(self, tenant: str, job_id: str, count: int, *, after: str = "0") -> list[LogLine]:
        """Return the last `count` log lines after the stream id `after`, in order."""
        return _log_lines(self._rows(tenant, job_id, "logs", after, count, last=True))

    def _rows(self, tenant: str, job_id: str, stream: str, after: str, limit: int, *, last: bool = False) -> list[Row]:
        """Return the first `limit` entries of a stream after the id `after`. With `last`, return the last `limit`.

        Raises NotFound, CorruptArtifact or StorageUnavailable if older entries cannot be read from the storage.
        """
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

    def is_empty(self) -> bool:
        """Return whether the service is new: Redis has no dataset, corpus or removal, and never had a job."""
        if self._redis.exists(FEED, REMOVALS):
            return False
        scans = (self._redis.scan_iter(key("*", kind), count=10_000) for kind in ("datasets", "corpora"))
        return not any(any(keys) for keys in scans)

    def named_folders(self, tenant: str) -> set[str]:
        """Return every storage folder that a record of the tenant names, and all parents of these folders.

        The set omits the uploads of ended loads, because nothing reads them. If the references of an ended job cannot
        be read, the set has the id of the job. Then no folder of this job may be deleted. Raises StorageUnavailable.
        """
        folders: set[str] = set()
        for name in self._redis.scan_iter(key(tenant, "*"), count=1000):
            match self._redis.type(name):
                case "hash" if name == key(tenant, "artifacts"):  # Large: an entry for each stage of recent jobs.
                    entries = self._redis.hscan_iter(name, count=_PAGE)
                    texts = [ref_of(tenant, artifact, body).model_dump_json() for artifact, body in entries]
                case "hash":
                    texts = list(unpacked(self._redis.hgetall(name)).values())
                    texts += [history := self._redis.hget(name, "history") or ""]
                    if _has_refs(history):
                        job_id = name.removeprefix(key(tenant, "job", ""))
                        try:
                            rows = self.moved_refs(tenant, job_id)
                            texts += [row.get("checkpoint") or json.dumps(row) for row in rows]
                        except (CorruptArtifact, NotFound) as error:
                            log.error("Cannot read which folders job %s uses: %s", job_id, error)
                            folders.add(job_id)
                case "list":
                    texts = self._redis.lrange(name, 0, -1)
                case "string":
                    texts = [self._redis.get(name) or ""]
                    if name.startswith(key(tenant, "load", "")) and not needs_files(texts[0]):
                        continue
                case _:
                    continue
            if name.startswith(prefix := key(tenant, "upload", "")):
                texts.append(f'"folder":"{tenant}/parts/{name.removeprefix(prefix)}"')
            folders.update(folder for text in texts for folder in _FOLDER.findall(text))
        return {f"{folder}/"[:end] for folder in folders for end, sign in enumerate(f"{folder}/") if sign == "/"}


def _due(due_at: str | None) -> float:
    """Return the Unix time from which a job can start: 0 without a delay. As in claim.lua, a damaged time gives 0."""
    try:
        return float(due_at or 0)
    except ValueError:
        return 0.0


def _record(fields: Mapping[str, str]) -> JobRecord:
    try:
        fields = unpacked(fields)
        return JobRecord.model_validate({k: json.loads(v) if k in _JSON_FIELDS else v for k, v in fields.items()})
    except ValidationError as error:
        raise unreadable(f"job {fields.get('id')}", error) from error
    except (ValueError, zlib.error) as error:
        message = f"The record of job {fields.get('id')} is damaged: {error}. Restore it from a backup."
        raise UnreadableRecord(message) from error


def _listed(tenant: str, job_id: str, fields: Mapping[str, str]) -> JobRecord:
    """Return the record of a job. For an unreadable record, return a stub with the error, so that lists still work."""
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


def _has_refs(history: str | None) -> bool:
    """Return whether references of a job moved to the storage. history: the field `history` of the job's record."""
    return f'"{REFS}"' in (history or "")


def _log_lines(entries: Iterable[tuple[str, Mapping[str, str]]]) -> list[LogLine]:
    return [
        {"id": stream_id, "attempt": int(fields["attempt"]), "at": float(fields["at"]), "line": fields["line"]}
        for stream_id, fields in entries
    ]


def read_report(report: str) -> tuple[float, str]:
    """Return the Unix time and the obstacle of a coordinator's report. An unreadable report has the time -infinity."""
    try:
        at, obstacle = json.loads(report)
        return float(at), str(obstacle)
    except (TypeError, ValueError):
        return -math.inf, ""


def queue_of(priority: int) -> str:
    """Return the Redis key of the queue for a priority."""
    return f"{QUEUE}:{priority}" if priority else QUEUE


def no_job(job_id: str) -> NotFound:
    """Return the error for an unknown job."""
    return NotFound(f"No job '{job_id}'. List the jobs to see their ids.")


def has_alias(job_id: str, alias: str) -> Conflict:
    """Return the error for an attempt to delete a job that has an alias."""
    return Conflict(
        f"Cannot delete job {job_id}, because the alias '{alias}' points to it. "
        f"Delete the alias with `tlm alias {alias} --delete`, or point it to another job."
    )
