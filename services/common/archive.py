"""Move events, metrics and log lines of jobs from Redis to the storage, and compress records of ended jobs."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.common.history import REFS, STREAMS, Moved, Row, moved_ref, packed, position, ref_of, unpacked
from services.common.job_reads import JobReads
from services.common.logs import log_context
from services.common.redis_client import ENDED, PREFIX, TERMINAL_JSON, TO_MOVE, key, load_scripts
from tlm_core.artifacts.hashing import canonical_json
from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.errors import CorruptArtifact, NotFound, UnreadableRecord
from tlm_core.jobs.spec import JobResult, ReusedArtifact
from tlm_core.jobs.states import TERMINAL

log = logging.getLogger(__name__)

ARCHIVE_SECONDS = 30 * 86_400.0  # after the end of a job, until its record is compressed
_UNPACKED = frozenset({"state", "last_event", "history", "packed"})  # fields that stay uncompressed
_FEW_REFS = 16  # artifacts whose references stay in the record of an ended job
_JOBS_AT_ONCE = 100  # most jobs whose streams one call moves, or whose records it compresses
# Errors that a damaged record or history can cause.
_DAMAGED = (CorruptArtifact, NotFound, UnreadableRecord, AttributeError, LookupError, TypeError, ValueError, zlib.error)


@dataclass(frozen=True)
class _Refs:
    """The references of artifacts and checkpoints that leave Redis when a job has ended.

    rows: the references, as entries of the stream REFS. packed: the new value of the record's field `packed`, or "" if
    the field does not change. artifacts: artifact ids. checkpoints: (artifact id, checkpoint as JSON) pairs.
    """

    rows: Sequence[Row] = ()
    packed: str = ""
    artifacts: Sequence[str] = ()
    checkpoints: Sequence[tuple[str, str]] = ()


_NO_REFS = _Refs()


class Archive(JobReads):
    """Operations that move data out of Redis or compress it. Several processes may call them at the same time."""

    def __init__(self, store: JobReads) -> None:
        super().__init__(store._redis, store._history)
        self._script = load_scripts(self._redis, Path(__file__).parent / "lua")

    def mark_streams(self) -> None:
        """Add each job that has events in Redis to the set TO_MOVE. Earlier releases did not add jobs to TO_MOVE."""
        for name in self._redis.scan_iter(key("*", "events", "*"), count=1000):
            self._redis.sadd(TO_MOVE, "/".join(name.removeprefix(f"{PREFIX}:{{").split("}:events:")))

    def move_marked(self) -> int:
        """Move the streams of up to 100 jobs in TO_MOVE to the storage. Returns how many jobs it moved or skipped."""
        members = self._redis.srandmember(TO_MOVE, _JOBS_AT_ONCE)
        for member in members:
            with self._skipping(TO_MOVE, member):
                self._move_streams(*member.split("/", 1))
        return len(members)

    @contextmanager
    def _skipping(self, place: str, member: str) -> Iterator[None]:
        """Run the block for one job. If the data of the job is damaged, log the error and skip the job.

        member: the job as "TENANT/JOB ID". place: the set that contains the job, TO_MOVE or ENDED. TO_MOVE loses the
        skipped job until `mark_streams` adds it again. In ENDED, the skipped job waits for another ARCHIVE_SECONDS.
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
        """Move metrics and log of a job to the storage. If the job has ended, also move its events and its `_Refs`."""
        assert self._history is not None, "only processes with a storage move streams"
        record, names = key(tenant, "job", job_id), {stream: key(tenant, stream, job_id) for stream in STREAMS}
        pipe = self._redis.pipeline(transaction=True)
        pipe.hgetall(record)
        for name in names.values():
            pipe.xrange(name)
        fields, *streams = pipe.execute()
        stored = fields.get("history")
        rows = {stream: entries for stream, entries in zip(STREAMS, streams, strict=True) if entries}
        earlier, refs = Moved.model_validate_json(stored) if stored else None, _NO_REFS
        if fields.get("state") not in TERMINAL:
            rows.pop("events", None)
        elif "spec" in fields and (earlier is None or REFS not in earlier.last):
            refs = self._refs(tenant, job_id, unpacked(fields))
            rows |= {REFS: refs.rows} if refs.rows else {}

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
        args = [f"{tenant}/{job_id}", stored or "", body, TERMINAL_JSON, key(tenant, "checkpoints", ""), refs.packed]
        lists_of_lua = map(canonical_json, (refs.artifacts, refs.checkpoints))
        keys = [record, TO_MOVE, ENDED, key(tenant, "job-artifacts", job_id), *names.values()]
        replaced = self._script["moved"](keys=keys, args=[*args, *lists_of_lua, *last])
        unused = earlier if replaced else moved
        if rows and unused is not None:
            self._history.delete(unused)

    def _refs(self, tenant: str, job_id: str, fields: Mapping[str, str]) -> _Refs:
        """Return the references that leave Redis: none for a job with at most 16 artifacts. fields: unpacked record."""
        nodes = _nodes(fields)
        refs, _ = self._produced(tenant, job_id, nodes)
        if len(refs) <= _FEW_REFS:
            return _NO_REFS
        names = [(name, node.artifact) for name, node in nodes.items()] or [("", artifact) for artifact in refs]
        rows = [{"node": name, "artifact": artifact, **refs[artifact].model_dump()} for name, artifact in names]
        checkpoints = self._own_checkpoints(tenant, job_id, list(refs))
        rows += [{"checkpoint": body} for _, body in checkpoints]
        shrunk = packed({"result": canonical_json(json.loads(fields["result"]) | {"artifacts": {}})}) if nodes else ""
        return _Refs([(f"{number}-0", row) for number, row in enumerate(rows, 1)], shrunk, list(refs), checkpoints)

    def archive_ended(self, seconds: float = ARCHIVE_SECONDS) -> int:
        """Compress up to 100 records of ended jobs whose streams moved at least `seconds` ago. Returns their number."""
        members = self._redis.zrangebyscore(ENDED, "-inf", self.now() - seconds, start=0, num=_JOBS_AT_ONCE)
        for member in members:
            with self._skipping(ENDED, member):
                self._archive(*member.split("/", 1))
        return len(members)

    def _archive(self, tenant: str, job_id: str) -> None:
        """Compress a job's record, and unpublish its artifacts and checkpoints, so that new jobs do not reuse them."""
        record = key(tenant, "job", job_id)
        fields = unpacked(self._redis.hgetall(record))
        nodes = _nodes(fields)
        refs, entries = self._produced(tenant, job_id, nodes)
        if refs and not nodes and not self.moved_refs(tenant, job_id):
            fields["published"] = canonical_json({artifact: ref.model_dump() for artifact, ref in refs.items()})
        own = self._own_checkpoints(tenant, job_id, sorted(refs.keys() | self.artifacts_of(tenant, job_id)))
        fields = {name: value for name, value in fields.items() if name not in _UNPACKED}
        names = list(fields)
        fields |= {"checkpoints": canonical_json([json.loads(body) for _, body in own])} if own else {}
        keys = [record, key(tenant, "job-artifacts", job_id), ENDED, key(tenant, "artifacts")]
        lists_of_lua = map(canonical_json, (names, list(entries.items()), own))
        args = [f"{tenant}/{job_id}", packed(fields) if names else "", *lists_of_lua]
        self._script["archive"](keys=keys, args=[*args, key(tenant, "checkpoints", "")])

    def _produced(
        self, tenant: str, job_id: str, nodes: Mapping[str, ReusedArtifact]
    ) -> tuple[dict[str, ManifestRef], dict[str, str]]:
        """Return two dicts for the artifacts of an ended job: id → reference, and id → entry in Redis.

        An entry is "" if the artifact is no longer published. nodes: node name → artifact, from the job's result. For a
        job without a result (failed or canceled), the dicts contain the artifacts that the job published.
        """
        refs = {node.artifact: node.ref for node in nodes.values()}
        refs |= {row["artifact"]: moved_ref(row) for row in self.moved_refs(tenant, job_id) if "artifact" in row}
        ids = sorted(refs.keys() | self.artifacts_of(tenant, job_id))
        bodies = zip(ids, self._redis.hmget(key(tenant, "artifacts"), ids) if ids else [], strict=True)
        published = {artifact: (body, ref_of(tenant, artifact, body)) for artifact, body in bodies if body is not None}
        refs = refs or {artifact: ref for artifact, (body, ref) in published.items() if job_id in body}
        entries = {artifact: body for artifact, (body, ref) in published.items() if refs.get(artifact) == ref}
        return refs, {artifact: entries.get(artifact, "") for artifact in refs}

    def _own_checkpoints(self, tenant: str, job_id: str, artifacts: Sequence[str]) -> list[tuple[str, str]]:
        """Return (artifact id, checkpoint as JSON) for each published checkpoint that the job has written."""
        lists = {artifact: self._redis.lrange(key(tenant, "checkpoints", artifact), 0, -1) for artifact in artifacts}
        return [(artifact, body) for artifact, bodies in lists.items() for body in bodies if job_id in body]


def _nodes(fields: Mapping[str, str]) -> dict[str, ReusedArtifact]:
    """Return the artifacts in a job's result: node name → artifact. fields: the unpacked record."""
    return JobResult.model_validate_json(fields.get("result", "{}")).artifacts


def _following(stream_id: str) -> str:
    """Return the smallest stream id that is greater than `stream_id`."""
    milliseconds, number = position(stream_id)
    return f"{milliseconds}-{number + 1}"
