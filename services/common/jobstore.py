"""The job store: every job, its events, metrics and logs, and which artifacts exist. On Redis, and only there.

Each verb is one Lua step that checks state, owner and attempt, changes the record, appends the event and keeps the
indexes, or does nothing at all. Times are the Redis server's, so clocks of different machines do not matter.

What is asked without changing anything is in jobreads.py, what lies under which key in jobkeys.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis

from services.common.jobkeys import FEED, LEASES, PREFIX, QUEUE, REMOVALS, indexes, key
from services.common.jobreads import CheckpointRef, JobReads
from services.common.redis_errors import translated
from tlm_core.artifacts import ManifestRef, canonical_json, digest_of
from tlm_core.errors import Conflict, IdempotencyMismatch, IllegalTransition, NotFound, StaleAttempt, TLMError
from tlm_core.jobs.spec import FROM_JOB, MAX_PRIORITY, JobRecord, JobSpec, Origin, Progress, Resolved, new_id
from tlm_core.jobs.states import ACTIVE, TERMINAL, TRANSITIONS, State, Verb, allowed

__all__ = ["FEED", "PREFIX", "CheckpointRef", "JobStore", "Removal", "connect"]

_LUA = Path(__file__).parent / "lua"
_OVER = canonical_json(dict.fromkeys(TERMINAL, True))
_KEPT = 20_000
_FEED_KEPT = 100_000
_IDEMPOTENCY_SECONDS = 7 * 86_400


@dataclass(frozen=True)
class _Publication:
    """An artifact, or a checkpoint of one under way, that a report makes exist; body: its reference as JSON."""

    artifact: str
    body: str
    is_checkpoint: bool = False


@dataclass(frozen=True)
class Removal:
    """What is still to be removed after a job or a data set (id) whose record is gone.

    folders: in storage. artifacts: ids of those that the job had made; what another job on the same data shares stays.
    data: digests of the job's data sets. with_jobs: the jobs on the data set, all of them over, go too.
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


def connect(url: str, *, password: str | None = None, timeout: float = 5.0) -> redis.Redis:
    """A client of the Redis at `url` with timeouts (seconds), so that no call hangs for ever."""
    return redis.Redis.from_url(
        url, password=password, decode_responses=True, socket_timeout=timeout, socket_connect_timeout=timeout
    )


class JobStore(JobReads):
    """All operations on jobs. Thread-safe; holds nothing but the client. Raises StoreUnavailable when Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self._script = {p.stem: client.register_script(p.read_text(encoding="utf-8")) for p in _LUA.glob("*.lua")}

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
        """Create a job; durable when this returns. Returns the record and whether it is new.

        The same idempotency key with the same spec gives the earlier job. origin: the job it was made from.
        needs: keys of records without which there is no job. Raises IdempotencyMismatch for another spec, NotFound
        when what it needs is gone.
        """
        job_id = new_id("job")
        fields = {
            "id": job_id,
            "tenant": tenant,
            "spec": spec.model_dump_json(),
            "resolved": resolved.model_dump_json(),
        }
        if origin is not None:
            fields["origin"] = origin.model_dump_json()
        keys = [
            key(tenant, "job", job_id),
            key(tenant, "events", job_id),
            key(tenant, "idem", digest_of(idempotency_key)) if idempotency_key else "",
            QUEUE,
            FEED,
            *indexes(tenant, spec, resolved),
            key(tenant, "state", "queued"),
        ]
        args = [
            job_id,
            f"{tenant}/{job_id}",
            canonical_json(fields),
            canonical_json({"kind": spec.kind} | (origin.model_dump() if origin else {})),
            _digest(spec, origin),
            _IDEMPOTENCY_SECONDS,
            spec.priority,
            key(tenant, "job", ""),
            _FEED_KEPT,
            canonical_json(list(needs)),
        ]
        kind, answered = self._run("submit", keys, args)
        if kind == "mismatch":
            raise _mismatch(answered)
        if kind == "gone":
            name = answered.rsplit(":", 1)[-1]
            raise NotFound(f"the data set {name} was deleted meanwhile; upload it again")
        return self.get(tenant, answered), kind == "created"

    def replayed(
        self, tenant: str, spec: JobSpec, idempotency_key: str, origin: Origin | None = None
    ) -> JobRecord | None:
        """The job that the key was used for, if it was: asked before what a spec means is looked up anew, since its
        data set may be gone by now. Raises IdempotencyMismatch for another spec.
        """
        with translated():
            body = self._redis.get(key(tenant, "idem", digest_of(idempotency_key)))
        if body is None:
            return None
        earlier = json.loads(body)
        try:
            job = self.get(tenant, earlier["id"])
        except NotFound:  # deleted since: the key is free again
            return None
        if earlier["digest"] != _digest(spec, origin):
            raise _mismatch(earlier["id"])
        return job

    def pause(self, tenant: str, job_id: str) -> JobRecord:
        """Stop with a checkpoint; `paused` follows when the worker has left one. A queued job is paused at once."""
        return self._move(Verb.PAUSE, tenant, job_id, "job.pause_requested")

    def resume(self, tenant: str, job_id: str) -> JobRecord:
        return self._move(Verb.RESUME, tenant, job_id, "job.resumed")

    def cancel(self, tenant: str, job_id: str) -> JobRecord:
        """Two-phase: `cancelling` until nothing of the job runs any more. Cancelling twice is no error."""
        try:
            return self._move(Verb.CANCEL, tenant, job_id, "job.cancel_requested")
        except IllegalTransition:
            record = self.get(tenant, job_id)
            if record.state in (State.CANCELLING, State.CANCELLED):
                return record
            raise

    # --- verbs of the coordinator ------------------------------------------------------------------------------

    def claim(self, owner: str, lease_seconds: float, *, stopping: bool = False) -> JobRecord | None:
        """A job to drive: one whose lease ran out (same attempt), else the next of the queue (next attempt).

        stopping: only one to end, that is pausing or cancelling and whose lease ran out.
        """
        args = [owner, lease_seconds, PREFIX, MAX_PRIORITY, _FEED_KEPT, "1" if stopping else ""]
        member = self._run("claim", [QUEUE, LEASES, FEED], args)
        return None if member is None else self.get(*member.split("/", 1))

    def renew(self, job: JobRecord, owner: str, lease_seconds: float) -> bool:
        """Keep the lease. False: it is another's now, and this owner must do nothing more for the job."""
        keys = [key(job.tenant, "job", job.id), LEASES]
        return bool(self._run("renew", keys, [owner, lease_seconds, f"{job.tenant}/{job.id}"]))

    def confirm_paused(self, job: JobRecord, owner: str) -> JobRecord:
        return self._move(Verb.CONFIRM_PAUSED, job.tenant, job.id, "job.paused", owner=owner, attempt=job.attempt)

    def confirm_cancelled(self, job: JobRecord, owner: str) -> JobRecord:
        return self._move(Verb.CONFIRM_CANCELLED, job.tenant, job.id, "job.cancelled", owner=owner, attempt=job.attempt)

    def finish(self, job: JobRecord, owner: str, result: Mapping[str, Any]) -> JobRecord:
        return self._move(
            Verb.FINISH,
            job.tenant,
            job.id,
            "job.succeeded",
            owner=owner,
            attempt=job.attempt,
            changes={"result": canonical_json(result), "error": None},
        )

    def fail(self, job: JobRecord, owner: str, error: TLMError) -> JobRecord:
        return self._move(
            Verb.FAIL,
            job.tenant,
            job.id,
            "job.failed",
            owner=owner,
            attempt=job.attempt,
            changes={"error": canonical_json(error.as_dict()), "failures": str(job.failures + 1)},
            data=error.as_dict(),
        )

    def requeue(self, job: JobRecord, owner: str, error: TLMError, delay_seconds: float) -> JobRecord:
        """Give the attempt up; the job is tried again after the delay."""
        return self._move(
            Verb.REQUEUE,
            job.tenant,
            job.id,
            "job.requeued",
            owner=owner,
            attempt=job.attempt,
            changes={"error": canonical_json(error.as_dict()), "failures": str(job.failures + 1)},
            data={**error.as_dict(), "delay_seconds": delay_seconds},
            delay=delay_seconds,
        )

    # --- verbs of an attempt (worker, or coordinator on its behalf) ---------------------------------------------

    def report(
        self,
        tenant: str,
        job_id: str,
        attempt: int,
        *,
        progress: Progress | None = None,
        metrics: Sequence[Mapping[str, Any]] = (),
        events: Sequence[tuple[str, Mapping[str, Any]]] = (),
        logs: Sequence[str] = (),
        submissions: Mapping[str, str | None] | None = None,
        publication: _Publication | None = None,
        unshared: str = "",
    ) -> State:
        """Tell what an attempt does; the answer is the job's state, from which a worker learns that it has to stop.

        submissions: by group, what the cluster is asked to run for it, or None to take that back; other groups' stay.
        publication and unshared are for `publish` and `publish_checkpoint`, which are this same step.
        Raises StaleAttempt when the attempt is over: the caller must stop writing.
        """
        made = publication or _Publication("", "")
        keys = [key(tenant, name, job_id) for name in ("job", "events", "metrics", "logs")]
        keys += [
            key(tenant, "artifacts"),
            key(tenant, "checkpoints", made.artifact) if made.is_checkpoint else "",
            key(tenant, "made", job_id),
        ]
        args = [
            attempt,
            canonical_json(dict.fromkeys(ACTIVE, True)),
            progress.model_dump_json() if progress else "",
            canonical_json([canonical_json(point) for point in metrics]),
            canonical_json([[kind, canonical_json(data)] for kind, data in events]),
            canonical_json(list(logs)),
            made.artifact,
            made.body,
            _KEPT,
            canonical_json(submissions) if submissions is not None else "",
            unshared,
        ]
        return State(self._check(Verb.REPORT, job_id, self._run("report", keys, args)))

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
        shared: bool = True,
    ) -> ManifestRef:
        """Make an artifact exist. The first one wins; the one in force is returned. Raises StaleAttempt.

        shared: false where no other job may take it, which the node's id then says, too.
        """
        event = ("artifact.published", {"artifact": artifact, "node": node, "stage": stage, "digest": ref.digest})
        publication = _Publication(artifact, canonical_json(ref.model_dump(mode="json")))
        self.report(tenant, job_id, attempt, events=[event], publication=publication, unshared="" if shared else node)
        published = self.artifact(tenant, artifact)
        assert published is not None, "the step above has set it"
        return published

    def publish_checkpoint(self, tenant: str, artifact: str, checkpoint: CheckpointRef) -> None:
        """Make a checkpoint exist. Raises StaleAttempt when its attempt is over."""
        data = {"node": checkpoint.node, "step": checkpoint.step, "metrics": checkpoint.metrics}
        body = canonical_json(checkpoint.model_dump(mode="json"))
        self.report(
            tenant,
            checkpoint.job,
            checkpoint.attempt,
            events=[("checkpoint.published", data)],
            publication=_Publication(artifact, body, is_checkpoint=True),
        )

    # --- taking back ------------------------------------------------------------------------------------------------

    def forget_artifact(self, tenant: str, artifact: str, ref: ManifestRef | None = None) -> None:
        """Take an artifact back (its files are lost or broken), so that its stage runs again. ref: where it lay; if it
        was made again elsewhere meanwhile, it stays."""
        body = canonical_json(ref.model_dump(mode="json")) if ref else ""
        self._run("forget", [key(tenant, "artifacts")], [artifact, body])

    def drop_checkpoint(self, tenant: str, artifact: str, checkpoint: CheckpointRef) -> None:
        """Take a checkpoint back; its files may be deleted afterwards."""
        body = canonical_json(checkpoint.model_dump(mode="json"))
        with translated():
            self._redis.lrem(key(tenant, "checkpoints", artifact), 0, body)

    # --- deleting -----------------------------------------------------------------------------------------------

    def delete(self, job: JobRecord, removal: Removal) -> None:
        """Forget a job that is over, with its events, metrics and logs, and note what is to be removed after it.

        Raises IllegalTransition, NotFound.
        """
        tenant = job.tenant
        keys = [*(key(tenant, name, job.id) for name in ("job", "events", "metrics", "logs", "made")), REMOVALS]
        keys += indexes(tenant, job.spec, job.resolved)
        keys += [key(tenant, "state", state) for state in sorted(TERMINAL)]
        answer = self._run("delete", keys, [job.id, _OVER, removal.member, canonical_json(asdict(removal))])
        if answer[0] == "missing":
            raise NotFound(f"no job '{job.id}'; list the jobs to see their ids")
        if answer[0] == "state":
            raise IllegalTransition(
                f"{job.id} is {answer[1]}; cancel it, and delete it when it is over", state=answer[1]
            )

    def drop_dataset(self, tenant: str, dataset_id: str, name: str, removal: Removal) -> None:
        """Forget a data set, and note what is to be removed after it. Raises Conflict while a job that is not over
        needs it."""
        keys = [
            key(tenant, "dataset", dataset_id),
            key(tenant, "datasets"),
            key(tenant, "dataset-name", name),
            key(tenant, "on", dataset_id),
            REMOVALS,
        ]
        args = [dataset_id, _OVER, key(tenant, "job", ""), removal.member, canonical_json(asdict(removal))]
        answer = self._run("drop_dataset", keys, args)
        if answer[0] == "busy":
            _, job, state = answer
            raise Conflict(f"{job} is {state} and needs this data set; cancel it first", job=job)

    def leave_to(self, job: JobRecord, artifacts: Iterable[str]) -> None:
        """Count what a deleted job had made, and this one shares, among what this one has made: it goes with it."""
        made = key(job.tenant, "made", job.id)
        with translated():
            self._redis.sadd(made, *artifacts)
            if not self._redis.exists(key(job.tenant, "job", job.id)):  # deleted just now
                self._redis.delete(made)

    def removals(self) -> list[Removal]:
        """What is still to be removed, of all tenants."""
        with translated():
            found: Any = self._redis.hvals(REMOVALS)
        return [Removal(**json.loads(one)) for one in found]

    def removed(self, removal: Removal) -> None:
        """Nothing of it is left."""
        with translated():
            self._redis.hdel(REMOVALS, removal.member)

    # --- within -------------------------------------------------------------------------------------------------

    def _run(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        with translated():
            return self._script[script](keys=list(keys), args=list(args))

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
        data: Mapping[str, Any] | None = None,
        delay: float = 0.0,
    ) -> JobRecord:
        keys = [
            key(tenant, "job", job_id),
            key(tenant, "events", job_id),
            QUEUE,
            LEASES,
            key(tenant, "state", ""),
            FEED,
        ]
        args = [
            job_id,
            f"{tenant}/{job_id}",
            canonical_json(dict(TRANSITIONS[verb].moves)),
            owner,
            "" if attempt is None else attempt,
            canonical_json(changes or {}),
            event,
            canonical_json(data or {}),
            delay,
            _FEED_KEPT,
        ]
        self._check(verb, job_id, self._run("move", keys, args))
        return self.get(tenant, job_id)

    @staticmethod
    def _check(verb: Verb, job_id: str, answer: list[str]) -> str:
        """The state that a script answered with, or the error it stands for."""
        match answer:
            case ["ok", state]:
                return state
            case ["missing"]:
                raise NotFound(f"no job '{job_id}'; list the jobs to see their ids")
            case ["state", state]:
                raise IllegalTransition(
                    f"{verb} is not possible for {job_id}: it is {state}; possible when {allowed(verb)}", state=state
                )
            case ["stale", attempt, *_]:
                raise StaleAttempt(f"{verb} refused for {job_id}: attempt {attempt} is in force, or another owner")
        raise Conflict(f"{verb} of {job_id} answered {answer}")


def _digest(spec: JobSpec, origin: Origin | None) -> str:
    # What follows from the job that is pruned stands in a job's record, but not in the request for it.
    asked = spec.model_dump(mode="json", exclude=set(FROM_JOB) if spec.pruned else None)
    return digest_of([asked, origin.model_dump() if origin else None])


def _mismatch(job_id: str) -> IdempotencyMismatch:
    return IdempotencyMismatch(
        f"this Idempotency-Key was used for {job_id} with another body; use a new key for a new job", job=job_id
    )
