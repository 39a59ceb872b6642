"""A coordinator with a store, a storage, a retriever, and a cluster that a test controls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from services.common.jobstore import JobStore
from services.common.redis_client import LEASES, key
from services.trainer.cluster import Status
from services.trainer.coordinator import Coordinator
from services.trainer.local_stages import LocalThreads
from services.trainer.settings import TrainerSettings
from services.trainer.worker import run_local
from tests.contract.gateway import Gateway
from tests.factories import make_resolved, make_spec
from tests.trainer_fakes import FakeCluster, FakeSelections, all_stages, folder_artifact, run_group
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import TLMError, WorkerLost
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import Beat, JobRecord
from tlm_core.jobs.states import TERMINAL, State
from tlm_core.training.stage import Stage

T = "default"
ERROR = WorkerLost("A worker died.")


class InlineExecutor(Executor):
    """Runs a function before `submit` returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except TLMError as error:
            future.set_exception(error)
        return future


class MovableClockStore(JobStore):
    """A job store whose clock is `ahead` seconds ahead of the times in the records."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead

    def expire_deadlines(self) -> None:
        """Make delayed jobs due and leases expire, as if their time had passed."""
        for member in self._redis.zrange(LEASES, 0, -1):
            self._redis.zadd(LEASES, {member: 0})
        for job_id in self._redis.zrange(key(T, "state", "queued"), 0, -1):
            self._redis.hdel(key(T, "job", job_id), "due_at")


class IdleExecutor(Executor):
    """Never starts a function."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ARG002
        self.futures.append(Future())
        return self.futures[-1]


@dataclass
class CoordinatorHarness:
    """A store, a storage, and a cluster, with the coordinators that use them."""

    store: MovableClockStore
    folder: Path
    cluster: FakeCluster = field(default_factory=FakeCluster)
    executor: Executor = field(default_factory=InlineExecutor)
    validate_error: TLMError | None = None

    def __post_init__(self) -> None:
        self.artifacts = ArtifactStore(str(self.folder / "storage"), self.folder / "cache", is_new=self.store.is_empty)
        with self.artifacts.errors("storing the dataset", writes=True):
            pass
        self.selections = FakeSelections(self.artifacts, self.folder)
        self.validated = 0

    def local(self, job: JobRecord, node: Node, artifact: str, inputs: Mapping[str, ManifestRef]) -> ManifestRef:  # noqa: ARG002
        if self.validate_error:
            raise self.validate_error
        self.validated += 1
        folder = f"{T}/artifacts/{artifact}/{job.id}-{self.validated}"
        return folder_artifact(self.artifacts, self.folder, folder, artifact, node.stage.name)

    def coordinator(self, owner: str = "a", **settings: Any) -> Coordinator:
        values = {"storage": str(self.folder / "storage"), "scratch": self.folder / "scratch"}
        return Coordinator(
            self.store, self.artifacts, self.selections, self.cluster, TrainerSettings(**(values | settings)),
            owner=owner, local=LocalThreads(self.local, lambda: self.executor),
        )  # fmt: skip

    def rounds_until(self, coordinator: Coordinator, ahead: float) -> None:
        """Run rounds. Advance the clock by up to 20 s before each, until it is `ahead` seconds ahead."""
        coordinator.round()
        while self.store.ahead < ahead:
            self.store.ahead = min(ahead, self.store.ahead + 20)
            coordinator.round()

    def submit(self, **over: Any) -> str:
        return self.store.submit(T, make_spec(**over), make_resolved())[0].id

    def job(self, job_id: str) -> JobRecord:
        return self.store.get(T, job_id)

    def until_submitted(self, coordinator: Coordinator, job_id: str, group: str = "main") -> str:
        """Run rounds and the group `baseline` until the job has a submission of `group`. Return the submission's id."""
        for _ in range(10):
            coordinator.round()
            submissions = self.job(job_id).submissions
            if group in submissions:
                return submissions[group]
            if self.cluster.statuses.get(baseline := submissions.get("baseline", "")) is Status.RUNNING:
                self.work(baseline)
        raise AssertionError(f"no submission for {self.job(job_id)}")

    def until_working(self, coordinator: Coordinator, job_id: str) -> str:
        """Run rounds until the job has a submission, report as its workers, and return the submission's id."""
        submission = self.until_submitted(coordinator, job_id)
        self.beat(job_id)
        return submission

    def until_ended(self, coordinator: Coordinator, job_id: str) -> JobRecord:
        """Run rounds and the workers of all submissions until the job has ended. Return its record."""
        for _ in range(20):
            coordinator.round()
            job = self.job(job_id)
            for submission in job.submissions.values():
                if self.cluster.statuses.get(submission) is Status.RUNNING:
                    self.work(submission)
            if job.state in TERMINAL:
                return job
        raise AssertionError(f"still {job.state}")

    def work(self, submission: str, **stages: Any) -> None:
        """Run the workers of a submission, and set its status as the cluster would. stages: see `all_stages`."""
        try:
            run_group(
                self.store, self.artifacts, self.folder / "scratch", self.cluster.assignment(submission),
                all_stages(**stages),
            )  # fmt: skip
            self.cluster.statuses[submission] = Status.ENDED
        except (TLMError, RuntimeError):
            self.cluster.statuses[submission] = Status.FAILED

    def ran(self, job_id: str, seconds: float) -> None:
        """Set the running time that is counted for a job."""
        self.store._redis.hset(key(T, "job", job_id), "ran_seconds", seconds)

    def beat(self, job_id: str, group: str = "main", **values: Any) -> None:
        """Report as the workers of a group in the first attempt, at the time of the movable clock."""
        before = self.job(job_id).beats.get(group)
        self.store.report(T, job_id, 1, beat=(group, Beat(**{"limit": 600.0} | values)))
        beats = self.job(job_id).beats
        if beats[group] != before:
            moved = beats | {group: beats[group].model_copy(update={"at": self.store.now()})}
            body = json.dumps({name: beat.model_dump() for name, beat in moved.items()})
            self.store._redis.hset(key(T, "job", job_id), "beats", body)

    def events(self, job_id: str) -> list[str]:
        return [event.type for event in self.store.events(T, job_id)]


def coordinator_of(gateway: Gateway, cluster: Any, settings: TrainerSettings) -> Coordinator:
    """Return a coordinator of the gateway's jobs that needs no retriever."""
    jobs, artifacts, scratch = gateway.parts.jobs, gateway.parts.artifacts, settings.scratch
    return Coordinator(
        jobs, artifacts, FakeSelections(artifacts, scratch), cluster, settings, owner="a",
        local=LocalThreads(partial(run_local, artifacts, scratch), InlineExecutor),
    )  # fmt: skip


def real_work(gateway: Gateway) -> Callable[[], None]:
    """Return a function that runs one round of a coordinator and the real stages of its submissions."""
    jobs, artifacts, cluster = gateway.parts.jobs, gateway.parts.artifacts, FakeCluster()
    scratch = gateway.root / "workers"
    coordinator = coordinator_of(gateway, cluster, TrainerSettings(storage=artifacts.root, scratch=scratch))

    def work() -> None:
        coordinator.round()
        for submission, status in cluster.statuses.items():
            if status is Status.RUNNING:
                run_group(jobs, artifacts, scratch, cluster.assignment(submission), Stage.load)
                cluster.statuses[submission] = Status.ENDED

    return work


def submit(store: JobStore, **kwargs: Any) -> JobRecord:
    return store.submit(T, make_spec(), make_resolved(), **kwargs)[0]


def claim(store: JobStore, owner: str = "a", lease: float = 30) -> JobRecord:
    job = store.claim(owner, lease)
    assert job is not None
    return job


def bring_to(store: JobStore, state: State) -> JobRecord:
    """Return a job in `state`, owned by 'a' if it is active."""
    submit(store)
    if state is State.QUEUED:
        return store.list_jobs(T)[0][0]
    job = claim(store)
    if state in (State.PAUSING, State.PAUSED):
        store.pause(T, job.id)
    if state in (State.CANCELLING, State.CANCELLED):
        store.cancel(T, job.id)
    match state:
        case State.PAUSED:
            store.confirm_paused(job, "a")
        case State.CANCELLED:
            store.confirm_cancelled(job, "a")
        case State.SUCCEEDED:
            store.finish(job, "a", {"ok": True})
        case State.FAILED:
            store.fail(job, "a", ERROR)
    return store.get(T, job.id)
