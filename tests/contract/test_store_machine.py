"""The job store under random calls of users, coordinators and workers, each of which may stop after any call.

A coordinator that crashed, or that slept, shows as calls with a record that is no longer current: `snapshots` keeps
every record that anybody has read. Redis loads its append-only file again, as after a kill. A move to the storage may
stop between its two steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from services.common.archive import Archive
from services.common.history import History, Moved
from services.common.jobstore import CheckpointRef, JobStore, Removal
from services.common.redis_client import LEASES, QUEUE, key
from tests.contract.coordinator_harness import MovableClockStore, T
from tests.factories import make_resolved, make_spec
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import Conflict, IdempotencyMismatch, NotFound, TrainingFailed, WorkerLost
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import ACTIVE, TERMINAL, TRANSITIONS, State, Verb

OWNERS = st.sampled_from(["a", "b"])
KEYS = st.sampled_from([None, "k1", "k2"])
PRIORITIES = st.sampled_from([0, 0, 5])
CONCLUSIONS = st.sampled_from(["confirm_paused", "confirm_cancelled", "finish", "fail", "requeue"])
ARTIFACTS = st.sampled_from(["art_1", "art_2"])


class _StopsHalfway(History):
    """Writes the files of a move, and then stops like a killed process."""

    def write(self, *args: Any) -> Moved:
        super().write(*args)
        raise InterruptedError


class StoreMachine(RuleBasedStateMachine):
    """Calls, and what must hold after each of them."""

    client: redis.Redis
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.client.flushall()
        artifacts = ArtifactStore(f"{self.folder.name}/storage", Path(self.folder.name) / "cache")
        self.store = MovableClockStore(self.client, History(artifacts))
        self.killed = JobStore(self.client, _StopsHalfway(artifacts))
        self.seen: dict[str, JobRecord] = {}
        self.by_key: dict[str, str] = {}
        self.published: dict[str, ManifestRef] = {}
        self.checkpoints: dict[str, list[CheckpointRef]] = {"art_1": [], "art_2": []}
        self.logged: Counter[str] = Counter()
        self.deleted: set[str] = set()

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize(target=snapshots)
    def first(self) -> Any:
        """One job runs, and another one waits."""
        jobs = [self.store.submit(T, make_spec(), make_resolved())[0] for _ in range(2)]
        return multiple(*jobs, self.store.claim("a", 30))

    # --- users ---

    @rule(target=snapshots, idempotency_key=KEYS, priority=PRIORITIES)
    def submit(self, idempotency_key: str | None, priority: int) -> Any:
        """A client that got no answer repeats its request, so two calls with one key give one job."""
        try:
            job, new = self.store.submit(
                T, make_spec(priority=priority), make_resolved(), idempotency_key=idempotency_key
            )
        except IdempotencyMismatch:
            return multiple()
        if idempotency_key:
            assert self.by_key.setdefault(idempotency_key, job.id) == job.id or new
            self.by_key[idempotency_key] = job.id
        assert new is (job.id not in self.seen)
        return job

    @rule(target=snapshots, job=snapshots, verb=st.sampled_from(["pause", "resume", "cancel"]))
    def ask(self, job: JobRecord, verb: str) -> Any:
        with suppress(Conflict, NotFound):
            return getattr(self.store, verb)(T, job.id)
        return multiple()

    @rule(job=snapshots)
    def delete(self, job: JobRecord) -> None:
        held = self.current(job)
        allowed = held is not None and held.state in TERMINAL
        try:
            self.store.delete(job, Removal(T, job.id))
        except (Conflict, NotFound):
            assert not allowed
            return
        assert allowed
        self.deleted.add(job.id)
        del self.seen[job.id]

    # --- coordinators ---

    @rule(target=snapshots, owner=OWNERS, which=st.sampled_from(["any", "any", "leased", "stopping"]))
    def claim(self, owner: str, which: Any) -> Any:
        before = {job.id: job for job in self.jobs()}
        job = self.store.claim(owner, 30, which)
        if job is None:
            return multiple()
        earlier = before[job.id]
        assert job.owner == owner
        if earlier.state is State.QUEUED:
            assert which == "any" and job.attempt == earlier.attempt + 1
            rivals = [
                other for other in before.values() if other.state is State.QUEUED and other.is_due(self.store.now())
            ]
            assert all((-other.priority, other.created_at) >= (-job.priority, job.created_at) for other in rivals)
        else:
            assert job.attempt == earlier.attempt and earlier.state in ACTIVE
        return job

    @rule()
    def expire(self) -> None:
        """Coordinators crashed or slept, and delays are over."""
        self.store.expire_deadlines()

    @rule(job=snapshots, seconds=st.sampled_from([0.0, 30.0]))
    def renew(self, job: JobRecord, seconds: float) -> None:
        held = self.current(job)
        renewed = self.store.renew(T, job.id, job.owner or "", seconds)
        assert renewed is (held is not None and held.owner is not None and held.owner == job.owner)

    @rule(
        target=snapshots,
        job=snapshots,
        fresh=st.booleans(),
        verb=st.sampled_from(["confirm_paused", "confirm_cancelled", "finish", "fail", "requeue"]),
    )
    def conclude(self, job: JobRecord, fresh: bool, verb: str) -> Any:
        """Only the owner of the current attempt may do this."""
        job = self.known(job, fresh)
        held = self.current(job)
        more: dict[str, tuple[Any, ...]] = {
            "finish": ({},), "fail": (TrainingFailed("x"),), "requeue": (WorkerLost("x"), 5.0),
        }  # fmt: skip
        may = held is not None and (held.owner or "?", held.attempt) == (job.owner, job.attempt)
        allowed = may and held is not None and held.state in TRANSITIONS[Verb(verb)]
        try:
            after: JobRecord = getattr(self.store, verb)(job, job.owner or "nobody", *more.get(verb, ()))
        except (Conflict, NotFound):
            assert not allowed
            return multiple()
        assert allowed
        return after

    # --- workers ---

    @rule(job=snapshots, fresh=st.booleans(), artifact=ARTIFACTS)
    def publish(self, job: JobRecord, fresh: bool, artifact: str) -> None:
        job = self.known(job, fresh)
        ref = ManifestRef(folder=f"{T}/artifacts/{artifact}/{job.id}-{job.attempt}", digest="0" * 64)
        before = self.store.artifact(T, artifact)
        if not self.may_write(job):
            with pytest.raises((Conflict, NotFound)):
                self.store.publish(T, job.id, job.attempt, artifact=artifact, ref=ref, node="n", stage="s")
            assert self.store.artifact(T, artifact) == before
            return
        published = self.store.publish(T, job.id, job.attempt, artifact=artifact, ref=ref, node="n", stage="s")
        assert published == (before or ref), "the first publication wins"
        self.published[artifact] = published

    @rule(job=snapshots, fresh=st.booleans(), lines=st.integers(1, 3))
    def report(self, job: JobRecord, fresh: bool, lines: int) -> None:
        job = self.known(job, fresh)
        logs, events = ["line"] * lines, [("tick", dict[str, object]())]
        if self.writes(job, lambda: self.store.report(T, job.id, job.attempt, logs=logs, events=events)):
            self.logged[job.id] += lines

    @rule(job=snapshots, fresh=st.booleans(), artifact=ARTIFACTS, current=st.booleans())
    def invalidate(self, job: JobRecord, fresh: bool, artifact: str, current: bool) -> None:
        """Only the current attempt may unpublish, and only the reference that it has read."""
        job = self.known(job, fresh)
        other = ManifestRef(folder="elsewhere", digest="1" * 64)
        ref = self.published.get(artifact, other) if current else other
        written = self.writes(job, lambda: self.store.invalidate_artifact(T, artifact, ref, by=job))
        if written and self.published.get(artifact) == ref:
            del self.published[artifact]
            assert self.store.artifact(T, artifact) is None

    @rule(job=snapshots, fresh=st.booleans(), artifact=ARTIFACTS, step=st.integers(1, 3))
    def publish_checkpoint(self, job: JobRecord, fresh: bool, artifact: str, step: int) -> None:
        job = self.known(job, fresh)
        ref = ManifestRef(folder=f"{T}/checkpoints/{artifact}/{job.id}-{job.attempt}/{step}", digest="2" * 64)
        checkpoint = CheckpointRef(ref=ref, step=step, node="n", job=job.id, attempt=job.attempt, metrics={})
        if self.writes(job, lambda: self.store.publish_checkpoint(T, artifact, checkpoint)):
            others = [other for other in self.checkpoints[artifact] if other != checkpoint]
            self.checkpoints[artifact] = [*others, checkpoint]

    @rule(job=snapshots, fresh=st.booleans(), artifact=ARTIFACTS)
    def drop_checkpoint(self, job: JobRecord, fresh: bool, artifact: str) -> None:
        job = self.known(job, fresh)
        if not self.checkpoints[artifact]:
            return
        first, *others = self.checkpoints[artifact]
        if self.writes(job, lambda: self.store.drop_checkpoint(T, artifact, first, by=job)):
            self.checkpoints[artifact] = others

    # --- housekeeping, and what happens to Redis ---

    @rule(complete=st.booleans())
    def move_streams(self, complete: bool) -> None:
        Archive(self.store).mark_streams()
        with suppress(InterruptedError):
            Archive(self.store if complete else self.killed).move_marked()

    @rule()
    def archive(self) -> None:
        Archive(self.store).archive_ended(-60)

    @rule()
    def restart_redis(self) -> None:
        assert self.client.execute_command("DEBUG", "LOADAOF") == "OK"

    # --- what must hold ---

    def jobs(self) -> list[JobRecord]:
        return self.store.list_jobs(T, limit=1000)[0]

    def current(self, job: JobRecord) -> JobRecord | None:
        return next((known for known in self.jobs() if known.id == job.id), None)

    def known(self, job: JobRecord, fresh: bool) -> JobRecord:
        """Return the record as its reader knows it: `job`, or with `fresh` the one in the store."""
        return (self.current(job) or job) if fresh else job

    def writes(self, job: JobRecord, write: Callable[[], object]) -> bool:
        """Call `write` of the job's attempt. Return whether it succeeds, which it must just where it may."""
        may = self.may_write(job)
        try:
            write()
        except (Conflict, NotFound):
            assert not may
            return False
        assert may
        return True

    def may_write(self, job: JobRecord) -> bool:
        held = self.current(job)
        return held is not None and held.attempt == job.attempt and held.state in ACTIVE

    @invariant()
    def histories_are_consistent(self) -> None:
        jobs = {job.id: job for job in self.jobs()}
        assert self.seen.keys() <= jobs.keys() and not self.deleted & jobs.keys(), "only a deleted job goes away"
        for job_id, job in jobs.items():
            earlier = self.seen.get(job_id)
            if earlier is not None:
                assert job.attempt >= earlier.attempt and job.last_event >= earlier.last_event
                assert earlier.state not in TERMINAL or job.state is earlier.state, "a final state never changes"
            events = self.store.events(T, job_id, limit=10_000)
            assert [event.seq for event in events] == list(range(1, job.last_event + 1))
            assert len(self.store.logs(T, job_id, limit=10_000)) == self.logged[job_id]
        self.seen = jobs

    @invariant()
    def indexes_agree_with_records(self) -> None:
        queues = list(self.client.scan_iter(f"{QUEUE}*"))
        with self.client.pipeline(transaction=False) as pipe:
            for name in (LEASES, *(key(T, "state", state) for state in State), *queues):
                pipe.zrange(name, 0, -1)
            leased, *members = pipe.execute()
        of_state = dict(zip(State, members, strict=False))
        queued = {member for queue in members[len(of_state) :] for member in queue}
        for job in self.jobs():
            assert [state for state, ids in of_state.items() if job.id in ids] == [job.state]
            assert (f"{T}/{job.id}" in queued) is (job.state is State.QUEUED)
            assert (f"{T}/{job.id}" in leased) is (job.state in ACTIVE)
            assert (job.owner is not None) is (job.state in ACTIVE)

    @invariant()
    def publications_never_change(self) -> None:
        for artifact, ref in self.published.items():
            assert self.store.artifact(T, artifact) == ref
        for artifact, checkpoints in self.checkpoints.items():
            assert self.store.checkpoints(T, artifact) == sorted(checkpoints, key=lambda checkpoint: checkpoint.step)

    @invariant()
    def nothing_of_a_deleted_job_comes_back(self) -> None:
        for job_id in self.deleted:
            assert self.client.keys(f"*{job_id}*") == [key(T, "deleted", job_id)]


def test_store_holds_its_promises_under_random_calls(redis_client: redis.Redis) -> None:
    machine = type("Machine", (StoreMachine,), {"client": redis_client})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    plan = {"max_examples": 25, "stateful_step_count": 40, "deadline": None, "derandomize": True}
    run_state_machine_as_test(machine, settings=settings(**plan, suppress_health_check=checks))
