"""The reading half of the job store: records, lists, events, metrics, logs, and which artifacts exist."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from services.common.jobkeys import FEED, REMOVALS, key
from services.common.redis_errors import translated
from tlm_core.artifacts import ManifestRef, digest_of
from tlm_core.errors import NotFound, UnreadableRecord
from tlm_core.jobs.spec import Event, JobRecord
from tlm_core.jobs.states import State

_JSON_FIELDS = ("spec", "resolved", "origin", "submissions", "unshared", "progress", "error", "result")


class CheckpointRef(BaseModel):
    """A published checkpoint. job and attempt: who wrote it; at: Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: ManifestRef
    step: int
    node: str
    job: str
    attempt: int
    metrics: dict[str, float | None] = {}


class JobReads:
    """What can be asked about jobs, for whoever changes none. Thread-safe; holds nothing but the client.

    Raises StoreUnavailable when Redis is away.
    """

    def __init__(self, client: redis.Redis) -> None:
        # The library types each answer as bytes, text or awaitable; with decode_responses it is text.
        self._redis: Any = client

    def ping(self) -> None:
        with translated():
            self._redis.ping()

    def now(self) -> float:
        """The time of the store, in Unix seconds, by which all its times are."""
        with translated():
            seconds, microseconds = self._redis.time()
        return float(seconds + microseconds / 1e6)

    def get(self, tenant: str, job_id: str) -> JobRecord:
        """Raises NotFound."""
        with translated():
            fields = self._redis.hgetall(key(tenant, "job", job_id))
        if not fields:
            raise NotFound(f"no job '{job_id}'; list the jobs to see their ids")
        return _record(fields)

    def state(self, tenant: str, job_id: str) -> State:
        """The state alone, for those who ask often. Raises NotFound."""
        with translated():
            state = self._redis.hget(key(tenant, "job", job_id), "state")
        if state is None:
            raise NotFound(f"no job '{job_id}'; list the jobs to see their ids")
        return State(state)

    def list_jobs(
        self,
        tenant: str,
        *,
        state: State | None = None,
        kind: str | None = None,
        datasets: Sequence[str] | None = None,
        labels: Sequence[tuple[str, str]] = (),
        after: str | None = None,
        limit: int = 20,
    ) -> tuple[list[JobRecord], bool]:
        """Jobs, newest first, those older than `after`; and whether there are more. All filters must hold; of
        `datasets` (ids) one."""
        wanted = [key(tenant, "state", state)] if state else []
        wanted += [key(tenant, "kind", kind)] if kind else []
        wanted += [key(tenant, "label", digest_of(pair)) for pair in labels]
        on = None if datasets is None else [key(tenant, "on", one) for one in datasets]
        with translated():
            ids = self._ids(wanted or [key(tenant, "jobs")], on, after, limit + 1)
            pipe = self._redis.pipeline(transaction=False)
            for job_id in ids[:limit]:
                pipe.hgetall(key(tenant, "job", job_id))
            found = pipe.execute()
        return [_record(fields) for fields in found if fields], len(ids) > limit

    def _ids(self, all_of: list[str], one_of: list[str] | None, after: str | None, limit: int) -> list[str]:
        """Members, last first, of sorted sets whose scores are all 0."""
        start = f"({after}" if after else "+"
        if one_of is not None and len(one_of) == 1:
            all_of, one_of = [*all_of, *one_of], None
        if one_of is None and len(all_of) == 1:
            found = self._redis.zrange(all_of[0], start, "-", desc=True, bylex=True, offset=0, num=limit)
            return list(found)
        if one_of == []:
            return []
        members = self._redis.zinter(all_of)
        if one_of is not None:
            union = set(self._redis.zunion(one_of))
            members = [one for one in members if one in union]
        end = bisect.bisect_left(members, after) if after else len(members)
        return list(reversed(members[max(0, end - limit) : end]))

    def events(self, tenant: str, job_id: str, *, after: int = 0, limit: int = 100) -> list[Event]:
        """Events with seq > after, in order."""
        with translated():
            rows = self._redis.xrange(key(tenant, "events", job_id), f"{after + 1}-0", "+", count=limit)
        return [
            Event(
                seq=int(i.split("-")[0]),
                type=f["type"],
                at=float(f["at"]),
                attempt=int(f["attempt"]),
                data=json.loads(f["data"]),
            )
            for i, f in rows
        ]

    def metrics(self, tenant: str, job_id: str, *, after: str = "0", limit: int = 1000) -> list[dict[str, Any]]:
        """Metric points after stream id `after`, in order; each has `id`, `attempt`, `at` and its values."""
        return [
            {"id": i, "attempt": int(f["attempt"]), "at": float(f["at"]), **json.loads(f["data"])}
            for i, f in self._stream(key(tenant, "metrics", job_id), after, limit)
        ]

    def logs(self, tenant: str, job_id: str, *, after: str = "0", limit: int = 1000) -> list[dict[str, Any]]:
        """Log lines after stream id `after`, in order."""
        return list(map(_line, self._stream(key(tenant, "logs", job_id), after, limit)))

    def last_logs(self, tenant: str, job_id: str, count: int, *, after: str = "0") -> list[dict[str, Any]]:
        """The last `count` log lines of those after stream id `after`, in order."""
        with translated():
            found = self._redis.xrevrange(key(tenant, "logs", job_id), min=f"({after}", count=count)
        return list(map(_line, reversed(found)))

    def artifact(self, tenant: str, artifact: str) -> ManifestRef | None:
        """Where a published artifact lies, or None: then it does not exist, whatever files there are."""
        with translated():
            body = self._redis.hget(key(tenant, "artifacts"), artifact)
        return None if body is None else ManifestRef.model_validate_json(body)

    def made(self, tenant: str, job_id: str) -> set[str]:
        """Ids of the artifacts of which the job has published the whole or a checkpoint."""
        with translated():
            return set(self._redis.smembers(key(tenant, "made", job_id)))

    def knows_no_files(self) -> bool:
        """Whether there was no data set, corpus or job of any tenant yet, so that nothing can lie in the storage."""
        with translated():
            if self._redis.exists(FEED, REMOVALS):
                return False
            kept = (self._redis.scan_iter(key("*", kind), count=10_000) for kind in ("datasets", "corpora"))
            return not any(any(found) for found in kept)

    def checkpoints(self, tenant: str, artifact: str) -> list[CheckpointRef]:
        """Published checkpoints of an artifact under way, the furthest last; several jobs may have left them."""
        with translated():
            bodies = self._redis.lrange(key(tenant, "checkpoints", artifact), 0, -1)
        return sorted((CheckpointRef.model_validate_json(body) for body in bodies), key=lambda one: one.step)

    def jobs_on_data(self, tenant: str, digest: str) -> list[JobRecord]:
        """All jobs whose data set has these bytes: others cannot share a stage with them."""
        with translated():
            ids = self._redis.zrange(key(tenant, "data", digest), 0, -1)
            pipe = self._redis.pipeline(transaction=False)
            for job_id in ids:
                pipe.hgetall(key(tenant, "job", job_id))
            return [_record(fields) for fields in pipe.execute() if fields]

    def _stream(self, key: str, after: str, limit: int) -> Iterable[tuple[str, dict[str, str]]]:
        with translated():
            return self._redis.xrange(key, f"({after}" if after != "0" else "-", "+", count=limit)


def _line(entry: tuple[str, Mapping[str, str]]) -> dict[str, Any]:
    stream_id, f = entry
    return {"id": stream_id, "attempt": int(f["attempt"]), "at": float(f["at"]), "line": f["line"]}


def _record(fields: Mapping[str, str]) -> JobRecord:
    data: dict[str, Any] = {k: json.loads(v) if k in _JSON_FIELDS else v for k, v in fields.items()}
    try:
        return JobRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise UnreadableRecord(
            f"job {fields.get('id')} was written by another release of the service: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}; run the newest release on all processes"
        ) from error
