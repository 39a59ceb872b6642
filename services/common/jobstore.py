"""The job store: every job, its events, metrics and logs, and which artifacts exist.

The store lies in Redis. `Archive` moves older events, metrics and log lines to the storage.

Each verb, such as pause or claim, runs as one Lua script. The script checks state, owner and attempt. If they are
valid, it changes the record, appends the event, and updates the indexes. Otherwise it changes nothing. All times are by
the clock of the Redis server, so the clocks of other machines do not matter.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import redis
from pydantic import BaseModel, ConfigDict

from services.common.history import History, entry_of, packed, ref_of
from services.common.job_reads import OBSTACLE_SECONDS, JobReads, has_alias, no_job, read_report
from services.common.logs import request_id
from services.common.redis_client import (
    FEED,
    LEASES,
    OBSTACLES,
    ORPHANS,
    PREFIX,
    QUEUE,
    REMOVALS,
    TERMINAL_JSON,
    TO_MOVE,
    check_disk,
    key,
    load_scripts,
)
from tlm_core.artifacts.hashing import canonical_json, digest_of
from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.errors import (
    Conflict,
    IdempotencyMismatch,
    IllegalTransition,
    NotFound,
    StaleAttempt,
    TLMError,
    Unavailable,
    without_details,
)
from tlm_core.jobs.spec import FROM_JOB, MAX_PRIORITY, Beat, JobRecord, JobSpec, Origin, Progress, Resolved
from tlm_core.jobs.states import ACTIVE, TERMINAL, TRANSITIONS, State, Verb, allowed
from tlm_core.names import new_id

log = logging.getLogger(__name__)

_ACTIVE_JSON = canonical_json(dict.fromkeys(ACTIVE, True))
_MAX_LOG_LINES = 20_000  # most log lines, or metric points, of a job in Redis; reached only if the storage is down
_MOVED_LINES = 2_000  # if a job has more lines or metric points in Redis, they move to the storage
_MAX_FEED_ENTRIES = 100_000
_MAX_COUNTED_SECONDS = 60.0  # most running time that one renewal counts, because the clock may jump
_IDEMPOTENCY_SECONDS = 7 * 86_400
_DELETED_SECONDS = 7 * 86_400  # how long the id of a deleted job is stored, so that its submissions are deleted too

Claimable = Literal["any", "leased", "stopping"]


class CheckpointRef(BaseModel):
    """A published checkpoint, and the job and attempt that wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: ManifestRef
    step: int
    node: str
    job: str
    attempt: int
    metrics: dict[str, float | None] = {}

    def as_json(self) -> str:
        """Return the JSON that Redis stores for the checkpoint."""
        return canonical_json(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Removal:
    """What remains to be deleted after the record of a job or dataset is deleted. id: of this job or dataset.

    - folders: storage folders. with_jobs: whether to delete also the finished jobs on the dataset.
    - artifacts: ids of the job's artifacts. data: digests of the job's datasets. An artifact is not deleted if another
      job on the same data uses it.
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


class JobStore(JobReads):
    """All operations on jobs. Thread-safe. Raises StoreUnavailable, StoreFull or UnreadableRecord."""

    def __init__(self, client: redis.Redis, history: History | None = None) -> None:
        super().__init__(client, history)
        self._script = load_scripts(client, Path(__file__).parent / "lua")

    def check_space(self) -> None:
        """Raise StoreFull if the disk of Redis is almost full."""
        check_disk(self._redis)

    def report_obstacle(self, owner: str, obstacle: str) -> None:
        """Store why the coordinator `owner` starts no job, or "" if it starts jobs. Delete all expired reports."""
        now = self.now()
        for name, report in self._redis.hgetall(OBSTACLES).items():
            if now - read_report(report)[0] > OBSTACLE_SECONDS:
                self._redis.hdel(OBSTACLES, name)
        self._redis.hset(OBSTACLES, owner, json.dumps([now, obstacle]))

    def rates(self, tenant: str) -> dict[str, str]:
        """Return the rates that `save_rates` stored, in the same form."""
        return dict(self._redis.hgetall(key(tenant, "stage-rates")))

    def save_rates(self, tenant: str, rates: Mapping[str, str]) -> None:
        """Store rates, such as {"flop/bf16 on DEVICE": "1e-14 JOB"}: seconds per unit of work, and the measuring job.

        The deletion of a job deletes no rate. redis_client.py describes the names (`stage-rates`).
        """
        if rates:  # Redis refuses an empty mapping.
            self._redis.hset(key(tenant, "stage-rates"), mapping=dict(rates))

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
        """Create a job durably. Returns the job's record, and whether this call has created the job.

        An equal request with the same idempotency key returns the earlier job. origin: the job that the new job retries
        or clones. needs: Redis keys of records of datasets. Raises NotFound if one of these records does not exist.
        Raises IdempotencyMismatch if the idempotency key belongs to another spec or origin.
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
        outcome, answer = self._script["submit"](keys=keys, args=args)
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

        So a repeated request returns the same job, even if the dataset of the job was deleted in between. Raises
        IdempotencyMismatch if the key belongs to another spec or origin.
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
        """Pause a job. A queued job pauses at once. Raises NotFound or IllegalTransition.

        A running job is `pausing` until its workers have written a checkpoint, or until a time limit ends.
        """
        return self._move_once(Verb.PAUSE, tenant, job_id, "job.pause_requested", {State.PAUSING, State.PAUSED})

    def resume(self, tenant: str, job_id: str) -> JobRecord:
        return self._move_once(Verb.RESUME, tenant, job_id, "job.resumed", {State.QUEUED, State.RUNNING})

    def cancel(self, tenant: str, job_id: str) -> JobRecord:
        """Cancel a job. An active job is `cancelling` until it has stopped. Raises NotFound or IllegalTransition."""
        return self._move_once(Verb.CANCEL, tenant, job_id, "job.cancel_requested", {State.CANCELLING, State.CANCELLED})

    def _move_once(self, verb: Verb, tenant: str, job_id: str, event: str, moved: set[State]) -> JobRecord:
        """Apply a verb of a user, and append `event`.

        If the job is already in one of the states `moved`, only return the record: clients may repeat verbs.
        """
        try:
            return self._move(verb, tenant, job_id, event)
        except IllegalTransition:
            record = self.get(tenant, job_id)
            if record.state in moved:
                return record
            raise

    # --- verbs of the coordinator ------------------------------------------------------------------------------

    def claim(self, owner: str, lease_seconds: float, which: Claimable = "any") -> JobRecord | None:
        """Claim a job for the coordinator `owner`. Returns the job, or None if there is no job to claim.

        which: "leased" claims a job whose lease has expired, and continues its attempt. "stopping" does this only for a
        job that is pausing or cancelling. "any" does the same as "leased", or starts an attempt of a queued job.
        """
        args = (owner, lease_seconds, PREFIX, MAX_PRIORITY, _MAX_FEED_ENTRIES, which)
        member = self._script["claim"](keys=[QUEUE, LEASES, FEED], args=args)
        return None if member is None else self.get(*member.split("/", 1))

    def renew(self, tenant: str, job_id: str, owner: str, lease_seconds: float) -> bool:
        """Renew the lease of a job for `lease_seconds`. 0 ends the lease, so another coordinator can claim the job.

        Returns False if `owner` has lost the lease. Then `owner` must not write to the job.
        """
        keys = [key(tenant, "job", job_id), LEASES]
        args = (owner, lease_seconds, f"{tenant}/{job_id}", _MAX_COUNTED_SECONDS)
        return bool(self._script["renew"](keys=keys, args=args))

    def confirm_paused(self, job: JobRecord, owner: str) -> JobRecord:
        return self._move_owned(Verb.CONFIRM_PAUSED, job, owner, "job.paused")

    def confirm_cancelled(self, job: JobRecord, owner: str) -> JobRecord:
        return self._move_owned(Verb.CONFIRM_CANCELLED, job, owner, "job.cancelled")

    def finish(self, job: JobRecord, owner: str, result: Mapping[str, object]) -> JobRecord:
        """Set a job to `succeeded`, and store the compressed result in its record. Returns the new record."""
        changes = {"packed": packed({"result": canonical_json(result)}), "error": None}
        finished = self._move_owned(Verb.FINISH, job, owner, "job.succeeded", changes=changes)
        if finished.result is not None and (nodes := finished.result.artifacts.values()):
            with suppress(Unavailable):  # The job has finished. The longer list costs only memory.
                self._redis.srem(key(job.tenant, "job-artifacts", job.id), *(node.artifact for node in nodes))
        return finished

    def fail(self, job: JobRecord, owner: str, error: TLMError) -> JobRecord:
        changes, data = _failure(job, error), without_details(error.as_dict())
        return self._move_owned(Verb.FAIL, job, owner, "job.failed", changes=changes, data=data)

    def requeue(self, job: JobRecord, owner: str, error: TLMError, delay_seconds: float) -> JobRecord:
        """End the attempt because of `error`, and queue the job. Coordinators can claim it after the delay."""
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
        artifact: str = "",
        reference: str = "",
        is_checkpoint: bool = False,
        excluded_from_cache: str = "",
        beat: tuple[str, Beat] | None = None,
        draining: bool = False,
    ) -> State:
        """Record a report of an attempt. Returns the job's state, which shows a worker whether it must stop.

        - metrics: metric points. events: (type, data) of each event. logs: log lines.
        - submissions: group → submission id, or None to delete the id of the group. Other groups do not change.
        - beat: a group, and its last heartbeat. draining: whether all workers must write a checkpoint and end.
        - artifact, reference, is_checkpoint, excluded_from_cache: only for `publish` and `publish_checkpoint`.

        Raises StaleAttempt if another attempt has begun, IllegalTransition if no attempt runs, and NotFound if the job
        is deleted. After any of these three errors, the caller must stop writing.
        """
        checkpoints = key(tenant, "checkpoints", artifact) if is_checkpoint else ""
        keys = [key(tenant, name, job_id) for name in ("job", "events", "metrics", "logs")]
        keys += [key(tenant, "artifacts"), checkpoints, key(tenant, "job-artifacts", job_id), TO_MOVE]
        args: list[str | float] = [
            attempt,
            _ACTIVE_JSON,
            progress.model_dump_json() if progress else "",
            canonical_json([canonical_json(point) for point in metrics]),
            canonical_json([[kind, canonical_json(data)] for kind, data in events]),
            canonical_json(list(logs)),
            artifact,
            reference,
            _MAX_LOG_LINES,
            canonical_json(submissions) if submissions is not None else "",
            excluded_from_cache,
            canonical_json([beat[0], beat[1].model_dump(exclude={"at"})]) if beat else "",
            "1" if draining else "",
            f"{tenant}/{job_id}",
            _MOVED_LINES,
        ]
        return State(self._check(Verb.REPORT, job_id, self._script["report"](keys=keys, args=args)))

    # --- artifacts and checkpoints -----------------------------------------------------------------------------

    def artifact(self, tenant: str, artifact: str) -> ManifestRef | None:
        """Return the reference of a published artifact, or None. Does not check the files."""
        return self.artifacts(tenant, [artifact])[0]

    def artifacts(self, tenant: str, artifacts: Sequence[str]) -> list[ManifestRef | None]:
        """Return the reference of each artifact, or None if it is not published. Sends one request to Redis."""
        bodies = self._redis.hmget(key(tenant, "artifacts"), list(artifacts)) if artifacts else []
        entries = zip(artifacts, bodies, strict=True)
        return [None if body is None else ref_of(tenant, artifact, body) for artifact, body in entries]

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
        """Publish an artifact. Returns `ref`, or the reference that another process has published first.

        cached: whether other jobs may reuse the artifact. Raises the errors of `report`.
        """
        event = ("artifact.published", {"artifact": artifact, "node": node, "stage": stage, "digest": ref.digest})
        self.report(
            tenant, job_id, attempt, events=[event], artifact=artifact, reference=entry_of(tenant, artifact, ref),
            excluded_from_cache="" if cached else node,
        )  # fmt: skip
        return self.artifact(tenant, artifact) or ref  # Another process may have unpublished it since the report.

    def invalidate_artifact(
        self, tenant: str, artifact: str, ref: ManifestRef | None = None, *, by: JobRecord | None = None
    ) -> None:
        """Unpublish an artifact, so that its stage runs again.

        With `ref`, unpublish only this reference. by: the job whose current attempt invalidates the artifact, or None
        for a deletion. With `by`, raises the errors of `report`.
        """
        place, body = key(tenant, "artifacts"), entry_of(tenant, artifact, ref) if ref else ""
        published = self._redis.hget(place, artifact) if ref else None
        if published is not None and ref_of(tenant, artifact, published) == ref:
            body = published  # An earlier release may have written it in another form.
        self._unpublish(place, artifact, body, by)

    def _unpublish(self, place: str, artifact: str, body: str, by: JobRecord | None) -> None:
        keys = [place, key(by.tenant, "job", by.id) if by else ""]
        args = [artifact, body, by.attempt if by else "", _ACTIVE_JSON]
        answer = self._script["invalidate"](keys=keys, args=args)
        self._check(Verb.REPORT, by.id if by else "", answer)

    def checkpoints(self, tenant: str, artifact: str) -> list[CheckpointRef]:
        """Return the published checkpoints for an artifact, sorted by step. Several jobs may have written them."""
        bodies = self._redis.lrange(key(tenant, "checkpoints", artifact), 0, -1)
        return sorted((CheckpointRef.model_validate_json(body) for body in bodies), key=lambda ref: ref.step)

    def publish_checkpoint(self, tenant: str, artifact: str, checkpoint: CheckpointRef) -> None:
        """Publish a checkpoint. Raises the errors of `report`."""
        event = ("checkpoint.published", checkpoint.model_dump(include={"node", "step", "metrics"}))
        self.report(
            tenant, checkpoint.job, checkpoint.attempt, events=[event], artifact=artifact,
            reference=checkpoint.as_json(), is_checkpoint=True,
        )  # fmt: skip

    def drop_checkpoint(
        self, tenant: str, artifact: str, checkpoint: CheckpointRef, *, by: JobRecord | None = None
    ) -> None:
        """Unpublish a checkpoint, so that its files may be deleted. by, errors: see `invalidate_artifact`."""
        self._unpublish(key(tenant, "checkpoints", artifact), "", checkpoint.as_json(), by)

    def orphans(self, folders: Collection[str], seconds: float) -> list[str]:
        """Return the folders that have had no record in Redis for `seconds`. folders: all folders without a record.

        Stores the time when each folder first had no record. Deletes this time for returned folders, and for folders
        that are not in `folders`.
        """
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

        Raises IllegalTransition if the job is unfinished, Conflict if an alias points to the job, and NotFound.
        """
        tenant = job.tenant
        own_keys = (key(tenant, name, job.id) for name in ("job", "events", "metrics", "logs", "job-artifacts"))
        mark = key(tenant, "deleted", job.id)
        keys = [*own_keys, REMOVALS, key(tenant, "names"), mark, key(tenant, "aliases")]
        keys += _indexes(tenant, job.spec, job.resolved)
        keys += [key(tenant, "state", state) for state in sorted(TERMINAL)]
        args = (job.id, TERMINAL_JSON, removal.member, canonical_json(asdict(removal)), _DELETED_SECONDS)
        match self._script["delete"](keys=keys, args=args):
            case ["missing"]:
                raise no_job(job.id)
            case ["alias", alias]:
                raise has_alias(job.id, alias)
            case ["state", state]:
                first = "Wait until it is cancelled" if state == State.CANCELLING else "Cancel it"
                raise IllegalTransition(f"Job {job.id} is {state}. {first} before you delete it.", state=state)

    def drop_dataset(self, tenant: str, dataset_id: str, name: str, removal: Removal) -> None:
        """Delete the record of a dataset, and store `removal`. Raises Conflict if an unfinished job needs the data."""
        jobs = key(tenant, "on", dataset_id)

        def drop(pipe: redis.client.Pipeline) -> None:
            if (unfinished := self._unfinished(tenant, jobs)) is not None:
                job, state = unfinished
                raise Conflict(
                    f"Job {job} is {state} and needs this dataset. Wait until the job ends, or cancel it.", job=job
                )
            pipe.multi()
            pipe.delete(key(tenant, "dataset", dataset_id))
            pipe.zrem(key(tenant, "datasets"), dataset_id)
            pipe.zrem(key(tenant, "dataset-name", name), dataset_id)
            pipe.hset(REMOVALS, removal.member, canonical_json(asdict(removal)))

        # A submission fails if the dataset's record is missing. If a job is submitted during `drop`, the submission
        # changes `jobs`, which Redis watches. Then `drop` runs again.
        self._redis.transaction(drop, jobs)

    def inherit_artifacts(self, job: JobRecord, artifacts: Iterable[str]) -> None:
        """Let `job` own artifacts that it shares with a deleted job. The deletion of `job` can then delete them."""
        job_artifacts = key(job.tenant, "job-artifacts", job.id)
        self._redis.sadd(job_artifacts, *artifacts)
        if not self._redis.exists(key(job.tenant, "job", job.id)):  # Another call has just deleted the job.
            self._redis.delete(job_artifacts)

    def removals(self) -> dict[str, str]:
        """Return the incomplete removals of all tenants: `Removal.member` → the removal as JSON."""
        return dict(self._redis.hgetall(REMOVALS))

    def removed(self, removal: Removal) -> None:
        """Record that a removal is complete."""
        self._redis.hdel(REMOVALS, removal.member)

    # --- scripts -----------------------------------------------------------------------------------------------

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
            canonical_json(dict(TRANSITIONS[verb])),
            owner,
            "" if attempt is None else attempt,
            canonical_json(changes or {}),
            event,
            canonical_json(data or {}),
            delay,
            _MAX_FEED_ENTRIES,
            _MAX_COUNTED_SECONDS,
        ]
        self._check(verb, job_id, self._script["move"](keys=keys, args=args))
        return self.get(tenant, job_id)

    @staticmethod
    def _check(verb: Verb, job_id: str, answer: list[str]) -> str:
        """Return the state of the job from the answer of a Lua script, or raise the error that the answer encodes."""
        match answer:
            case ["ok", state]:
                return state
            case ["missing"]:
                raise no_job(job_id)
            case ["state", state]:
                problem = f"Cannot {verb} job {job_id}, because its state is {state}."
                raise IllegalTransition(f"{problem} The state must be {allowed(verb)}.", state=state)
            case ["stale", attempt, *_]:
                raise StaleAttempt(
                    f"Refused a write to job {job_id} ({verb}), because another attempt or process has taken over "
                    f"the job (current attempt: {attempt}). This process ends its work on the job. No action is needed."
                )
        raise Conflict(
            f"The job store returned an unexpected answer ({answer}) to '{verb}' of job {job_id}. "
            "Run the same release in all processes."
        )


def _indexes(tenant: str, spec: JobSpec, resolved: Resolved) -> list[str]:
    """Return the Redis keys of the sorted sets that contain a job until it is deleted."""
    return [
        key(tenant, "jobs"),
        key(tenant, "kind", spec.kind),
        *(key(tenant, "on", data.id) for data in resolved.datasets),
        *(key(tenant, "data", digest) for digest in sorted({data.ref.digest for data in resolved.datasets})),
        *(key(tenant, "label", digest_of(pair)) for pair in sorted(spec.metadata.items())),
    ]


def _failure(job: JobRecord, error: TLMError) -> dict[str, str | None]:
    failures, losses, hub_losses = job.spent(error)
    interruptions = job.interruptions + (failures == job.failures)
    counts = {"failures": failures, "losses": losses, "hub_losses": hub_losses, "interruptions": interruptions}
    return {"error": canonical_json(error.as_dict()), **{name: str(count) for name, count in counts.items()}}


def _request_digest(spec: JobSpec, origin: Origin | None) -> str:
    # The record of a pruning job has the fields FROM_JOB of the pruned job. A request for a pruning job lacks them.
    request = spec.model_dump(mode="json", exclude=set(FROM_JOB) if spec.source_job else None)
    return digest_of([request, origin.model_dump() if origin else None])


def _mismatch(job_id: str) -> IdempotencyMismatch:
    return IdempotencyMismatch(
        f"Job {job_id} was submitted with this Idempotency-Key and another body. Use a new key for a new job.",
        job=job_id,
    )
