"""Move old entries of streams to the storage, and compress the records of jobs that ended long ago."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from services.common.history import STREAMS, Moved, packed, position, ref_of, unpacked
from services.common.job_reads import JobReads
from services.common.logs import log_context
from services.common.redis_client import ENDED, PREFIX, TERMINAL_JSON, TO_MOVE, key, load_scripts
from tlm_core.artifacts.hashing import canonical_json
from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.errors import CorruptArtifact, NotFound, UnreadableRecord
from tlm_core.jobs.states import TERMINAL

log = logging.getLogger(__name__)

ARCHIVE_SECONDS = 30 * 86_400.0  # after the end of a job, until its record is compressed
_UNPACKED = frozenset({"state", "last_event", "history", "packed"})  # fields that stay uncompressed
_JOBS_AT_ONCE = 100  # most jobs whose streams one call moves, or whose records it compresses
# Errors that a damaged record or history can cause.
_DAMAGED = (CorruptArtifact, NotFound, UnreadableRecord, AttributeError, LookupError, TypeError, ValueError, zlib.error)


class Archive(JobReads):
    """Limits the memory that Redis uses. Several processes may call its methods at the same time."""

    def __init__(self, store: JobReads) -> None:
        super().__init__(store._redis, store._history)
        self._script = load_scripts(self._redis, Path(__file__).parent / "lua")

    def mark_streams(self) -> None:
        """Mark all jobs that have streams for `move_marked`. Jobs that an earlier release wrote have no mark yet."""
        for name in self._redis.scan_iter(key("*", "events", "*"), count=1000):
            self._redis.sadd(TO_MOVE, "/".join(name.removeprefix(f"{PREFIX}:{{").split("}:events:")))

    def move_marked(self) -> int:
        """Move the streams of up to 100 marked jobs to the storage. Returns the number of these jobs."""
        members = self._redis.srandmember(TO_MOVE, _JOBS_AT_ONCE)
        for member in members:
            with self._skipping(TO_MOVE, member):
                self._move_streams(*member.split("/", 1))
        return len(members)

    @contextmanager
    def _skipping(self, place: str, member: str) -> Iterator[None]:
        """Skip a damaged job. place: TO_MOVE or ENDED, from which `member` comes.

        The next call of `mark_streams` marks the streams again. `archive_ended` retries after ARCHIVE_SECONDS.
        """
        try:
            yield
        except _DAMAGED as error:
            with log_context(job_id=member.partition("/")[2]):
                log.error("Cannot move or archive job %s: %s", member, error)
            if place == TO_MOVE:
                self._redis.srem(place, member)
            else:
                self._redis.zadd(place, {member: self.now()}, xx=True)

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

        def is_current() -> bool:
            return bool(self._redis.hget(record, "history") == stored)

        try:
            moved = self._history.write(tenant, job_id, earlier, rows, is_current) if rows else earlier
        except (CorruptArtifact, NotFound):
            if is_current():
                raise
            return  # Another process has moved the streams and deleted the files of `earlier`.
        body = moved.model_dump_json() if moved else ""
        last = [_following(rows[stream][-1][0]) if stream in rows else "" for stream in STREAMS]
        args = [f"{tenant}/{job_id}", stored or "", body, TERMINAL_JSON, *last]
        replaced = self._script["moved"](keys=[record, TO_MOVE, ENDED, *names.values()], args=args)
        unused = earlier if replaced else moved
        if rows and unused is not None:
            self._history.delete(unused)

    def archive_ended(self, seconds: float = ARCHIVE_SECONDS) -> int:
        """Compress up to 100 records of ended jobs whose streams moved at least `seconds` ago. Returns how many."""
        members = self._redis.zrangebyscore(ENDED, "-inf", self.now() - seconds, start=0, num=_JOBS_AT_ONCE)
        for member in members:
            with self._skipping(ENDED, member):
                self._archive(*member.split("/", 1))
        return len(members)

    def _archive(self, tenant: str, job_id: str) -> None:
        """Compress a record, and end the reuse of its artifacts and checkpoints by new jobs."""
        record = key(tenant, "job", job_id)
        fields = unpacked(self._redis.hgetall(record))
        nodes = json.loads(fields.get("result", "{}")).get("artifacts", {}).values()
        refs = {node["artifact"]: ManifestRef.model_validate(node["ref"]) for node in nodes}
        produced = sorted(refs.keys() | self.artifacts_of(tenant, job_id))
        published = self._published(tenant, produced)
        if not refs and produced:  # A job that failed or was canceled has no result.
            refs = {artifact: ref for artifact, (body, ref) in published.items() if job_id in body}
            fields["published"] = canonical_json({artifact: ref.model_dump() for artifact, ref in refs.items()})
        entries = {artifact: body for artifact, (body, ref) in published.items() if refs.get(artifact) == ref}
        own_entries = [(artifact, entries.get(artifact, "")) for artifact in refs]
        lists = {artifact: self._redis.lrange(key(tenant, "checkpoints", artifact), 0, -1) for artifact in produced}
        own = [(artifact, body) for artifact, bodies in lists.items() for body in bodies if job_id in body]
        fields = {name: value for name, value in fields.items() if name not in _UNPACKED}
        names = list(fields)
        fields |= {"checkpoints": canonical_json([json.loads(body) for _, body in own])} if own else {}
        keys = [record, key(tenant, "job-artifacts", job_id), ENDED, key(tenant, "artifacts")]
        lists_of_lua = map(canonical_json, (names, own_entries, own))
        args = [f"{tenant}/{job_id}", packed(fields) if names else "", *lists_of_lua]
        self._script["archive"](keys=keys, args=[*args, key(tenant, "checkpoints", "")])

    def _published(self, tenant: str, artifacts: Sequence[str]) -> dict[str, tuple[str, ManifestRef]]:
        """Return entry and reference of each of the artifacts that is published."""
        bodies = self._redis.hmget(key(tenant, "artifacts"), artifacts) if artifacts else []
        entries = zip(artifacts, bodies, strict=True)
        return {artifact: (body, ref_of(tenant, artifact, body)) for artifact, body in entries if body is not None}


def _following(stream_id: str) -> str:
    """Return the least stream id that is greater than `stream_id`."""
    milliseconds, number = position(stream_id)
    return f"{milliseconds}-{number + 1}"
