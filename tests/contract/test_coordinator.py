"""The coordinator and the workers' runner on a real job store, with a cluster that a test drives by hand."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from services.common.artifacts_of import published
from services.common.jobstore import JobStore, connect
from services.trainer.cluster import Status
from services.trainer.coordinator import Coordinator
from services.trainer.selections import SelectionState
from services.trainer.settings import TrainerSettings
from tests.factories import make_resolved, make_spec
from tests.trainer_fakes import (
    FakeCluster,
    FakeSelections,
    all_stages,
    counting_stage,
    folder_artifact,
    plain_stage,
    run_group,
)
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import (
    EmptySelection,
    IndexUnavailable,
    InvalidDataset,
    NonFiniteLoss,
    StaleAttempt,
    TLMError,
    UnreadableRecord,
)
from tlm_core.jobs.plan import Node, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.training.params import SHRUNK
from tlm_core.training.stage import StageContext

T = "default"


class AtOnce(Executor):
    """Runs what it is given before it answers."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except TLMError as error:
            future.set_exception(error)
        return future


@dataclass
class World:
    """A store, a storage, a cluster, and coordinators on them."""

    store: JobStore
    folder: Path
    cluster: FakeCluster = field(default_factory=FakeCluster)
    now: float = 0.0
    validate_error: TLMError | None = None

    def __post_init__(self) -> None:
        self.artifacts = ArtifactStore(str(self.folder / "storage"), self.folder / "cache")
        self.selections = FakeSelections(self.artifacts, self.folder)
        self.validated = 0

    def local(self, job: JobRecord, node: Node, artifact: str, inputs: Mapping[str, ManifestRef]) -> ManifestRef:  # noqa: ARG002
        if self.validate_error:
            raise self.validate_error
        self.validated += 1
        folder = f"{T}/artifacts/{artifact}/{job.id}-{self.validated}"
        return folder_artifact(self.artifacts, self.folder, folder, artifact, node.stage)

    def coordinator(self, owner: str = "a", **settings: Any) -> Coordinator:
        values = {"storage": str(self.folder / "storage"), "scratch": self.folder / "scratch", "lease_seconds": 0.2}
        return Coordinator(
            self.store, self.artifacts, self.selections, self.cluster, TrainerSettings(**(values | settings)),
            owner=owner, local=self.local, executor=AtOnce(), clock=lambda: time.time() + self.now,
        )  # fmt: skip

    def submit(self, **over: Any) -> str:
        return self.store.submit(T, make_spec(**over), make_resolved())[0].id

    def job(self, job_id: str) -> JobRecord:
        return self.store.get(T, job_id)

    def until_submitted(self, coordinator: Coordinator, job_id: str) -> str:
        for _ in range(10):
            coordinator.round()
            if submission := self.job(job_id).submissions.get("main"):
                return submission
        raise AssertionError(f"nothing was submitted for {self.job(job_id)}")

    def work(self, submission: str, **stages: Any) -> None:
        """What the cluster would do: run the workers, then tell how it ended."""
        try:
            run_group(
                self.store, self.artifacts, self.folder / "scratch", self.cluster.assignment(submission),
                all_stages(**stages),
            )  # fmt: skip
            self.cluster.statuses[submission] = Status.ENDED
        except (TLMError, RuntimeError):
            self.cluster.statuses[submission] = Status.FAILED

    def events(self, job_id: str) -> list[str]:
        return [event.type for event in self.store.events(T, job_id)]


@pytest.fixture
def world(redis_client: redis.Redis, tmp_path: Path) -> Iterator[World]:
    yield World(JobStore(redis_client), tmp_path)


def test_a_job_runs_through_all_its_stages_to_a_result(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit(seeds=(0, 1))
    world.work(world.until_submitted(coordinator, job_id))
    coordinator.round()
    job = world.job(job_id)
    assert job.state is State.SUCCEEDED
    assert job.result is not None
    plan = plan_of(job)
    assert set(job.result["artifacts"]) == {n.name for n in plan.nodes}
    assert [n.name for n in plan.nodes] == [
        "validate", "select", "prepare", "joint.s0", "finetune.s0", "joint.s1", "finetune.s1", "evaluate", "export",
    ]  # fmt: skip
    for ref in published(world.store, job).values():
        world.artifacts.verify(ref)


def test_a_second_job_of_the_same_content_takes_every_stage_from_the_first(world: World) -> None:
    coordinator, first = world.coordinator(), world.submit()
    world.work(world.until_submitted(coordinator, first))
    coordinator.round()
    second = world.submit()
    coordinator.round()
    assert world.job(second).state is State.SUCCEEDED
    assert world.job(second).submissions == {}
    assert world.validated == 1


def test_what_had_to_shrink_for_memory_is_the_jobs_own_and_taken_by_no_other(world: World) -> None:
    def shrunk(ctx: StageContext) -> Mapping[str, Any]:
        return {**plain_stage(ctx), SHRUNK: 4}

    coordinator, first = world.coordinator(), world.submit()
    world.work(world.until_submitted(coordinator, first), joint=shrunk)
    coordinator.round()
    again = world.until_submitted(coordinator, second := world.submit())
    assert world.events(second).count("artifact.published") == 0, "validate and select come from the cache"
    world.work(again)
    coordinator.round()
    own, others = world.job(first).result, world.job(second).result
    assert own is not None and others is not None
    assert own["artifacts"]["joint.s0"]["artifact"] != others["artifacts"]["joint.s0"]["artifact"]
    assert own["artifacts"]["prepare"] == others["artifacts"]["prepare"]
    for ref in published(world.store, world.job(first)).values():
        world.artifacts.verify(ref)
    third = world.submit()
    coordinator.round()
    coordinator.round()
    assert world.job(third).state is State.SUCCEEDED, "the second's is for all"


def test_an_artifact_whose_files_are_gone_is_made_again(world: World) -> None:
    coordinator, first = world.coordinator(), world.submit()
    world.work(world.until_submitted(coordinator, first))
    coordinator.round()
    refs = published(world.store, world.job(first))
    world.artifacts.delete(refs["joint.s0"].folder)
    second = world.submit()
    world.work(world.until_submitted(coordinator, second))
    coordinator.round()
    assert world.job(second).state is State.SUCCEEDED
    for ref in published(world.store, world.job(second)).values():
        world.artifacts.verify(ref)


def test_a_killed_worker_is_followed_by_an_attempt_that_goes_on_from_the_checkpoint(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()

    def die_at_three(step: int) -> None:
        if step == 3:
            raise RuntimeError("killed")

    first = world.until_submitted(coordinator, job_id)
    world.work(first, joint=counting_stage(5, die_at_three))
    coordinator.round()
    assert (world.job(job_id).state, world.job(job_id).failures) == (State.QUEUED, 1)
    time.sleep(1.1)
    second = world.until_submitted(coordinator, job_id)
    assert second != first
    world.work(second, joint=counting_stage(5))
    coordinator.round()
    assert world.job(job_id).state is State.SUCCEEDED
    starts = [e.data["step"] for e in world.store.events(T, job_id) if e.type == "stage.started_at"]
    assert starts == [0, 2]


def test_any_coordinator_goes_on_where_another_was_killed(world: World) -> None:
    job_id = world.submit()
    for n in range(12):
        coordinator = world.coordinator(f"c{n}")  # a few rounds each, then it is gone and its lease runs out
        coordinator.round()
        coordinator.round()
        if world.job(job_id).state is State.SUCCEEDED:
            break
        for submission, status in list(world.cluster.statuses.items()):
            if status is Status.ALIVE:
                world.work(submission)
        time.sleep(0.25)
    assert world.job(job_id).state is State.SUCCEEDED
    assert world.job(job_id).attempt == 1, "an adoption is no new attempt"
    assert len(world.cluster.commands) == 1, "and nothing was started twice"


def test_a_submission_that_the_cluster_has_lost_is_not_started_again_under_the_same_attempt(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    lost = world.until_submitted(coordinator, job_id)
    world.cluster.commands.clear()
    world.cluster.statuses.clear()
    coordinator.round()
    assert world.job(job_id).state is State.QUEUED
    time.sleep(1.1)
    assert world.until_submitted(coordinator, job_id) != lost


@pytest.mark.parametrize("error", [EmptySelection("no passage"), NonFiniteLoss("nan at step 3")])
def test_an_error_that_would_come_back_fails_the_job_at_once(world: World, error: TLMError) -> None:
    coordinator, job_id = world.coordinator(), world.submit()

    def broken(_: Any) -> dict[str, Any]:
        raise error

    world.work(world.until_submitted(coordinator, job_id), joint=broken)
    coordinator.round()
    job = world.job(job_id)
    assert job.state is State.FAILED
    assert job.error is not None
    assert (job.error["code"], job.error["message"]) == (error.code, error.message)


def test_a_data_set_with_faults_fails_the_job_with_all_of_them(world: World) -> None:
    world.validate_error = InvalidDataset("two faults", faults=[])
    coordinator, job_id = world.coordinator(), world.submit()
    for _ in range(3):
        coordinator.round()
    assert world.job(job_id).error == world.validate_error.as_dict()


def test_a_job_that_keeps_failing_is_given_up_after_its_attempts(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit(max_attempts=2)
    for _ in range(2):
        submission = world.until_submitted(coordinator, job_id)
        world.cluster.statuses[submission] = Status.FAILED
        coordinator.round()
        time.sleep(1.1)
    job = world.job(job_id)
    assert (job.state, job.attempt, job.failures) == (State.FAILED, 2, 2)


def test_a_component_that_is_away_makes_the_job_wait_and_costs_no_attempt(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()

    def away(_: JobRecord) -> SelectionState:
        raise IndexUnavailable("OpenSearch is away")

    world.selections.answer = away
    for _ in range(4):
        coordinator.round()
    assert world.job(job_id).state is State.RUNNING
    assert world.events(job_id).count("job.waiting") == 1
    world.selections.answer = lambda _: None
    world.cluster.away = True
    for _ in range(6):
        coordinator.round()
    assert world.job(job_id).submissions == {}
    world.cluster.away = False
    submission = world.until_submitted(coordinator, job_id)
    world.cluster.away = True
    for _ in range(3):
        coordinator.round()
    world.cluster.away = False
    world.work(submission)
    coordinator.round()
    assert (world.job(job_id).state, world.job(job_id).attempt) == (State.SUCCEEDED, 1)


def test_a_cluster_that_cannot_take_jobs_yet_is_asked_again_in_the_same_attempt(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    world.cluster.refusing = True
    for _ in range(6):
        coordinator.round()
    assert world.events(job_id).count("job.waiting") == 1
    world.cluster.refusing = False
    world.work(world.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (world.job(job_id).state, world.job(job_id).attempt) == (State.SUCCEEDED, 1)


def test_a_worker_that_tells_nothing_is_stopped_and_replaced(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.store.report(T, job_id, 1, logs=["a worker has begun"])
    world.now = 301
    coordinator.round()
    assert world.cluster.statuses[submission] is Status.FAILED
    assert world.job(job_id).state is State.QUEUED


def test_workers_that_wait_for_room_in_the_cluster_are_not_taken_for_dead(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.now = 3600
    coordinator.round()
    assert world.cluster.statuses[submission] is Status.ALIVE
    world.work(submission)
    coordinator.round()
    assert (world.job(job_id).state, world.job(job_id).attempt) == (State.SUCCEEDED, 1)


@pytest.mark.parametrize("workers, cpus", [(1, 3.0), (2, 0.0)])
def test_a_single_worker_computes_in_the_program_that_is_given_room(world: World, workers: int, cpus: float) -> None:
    coordinator = world.coordinator(worker_cpus=3.0)
    submission = world.until_submitted(coordinator, world.submit(workers=workers))
    assert world.cluster.needs[submission] == (cpus, 0.0), "several ask for room themselves, through Ray Train"


def test_a_job_that_waits_for_room_is_cancelled_at_once_and_does_nothing_should_it_start(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.cluster.statuses[submission] = Status.WAITING
    world.store.cancel(T, job_id)
    coordinator.round()
    assert world.job(job_id).state is State.CANCELLED
    assert world.cluster.stopped == [submission]
    told = world.events(job_id)
    world.work(submission)
    assert world.events(job_id) == told


def test_a_paused_job_leaves_a_checkpoint_and_goes_on_after_resume(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)

    def pause_at_two(step: int) -> None:
        if step == 2:
            world.store.pause(T, job_id)
            coordinator.round()
            assert world.job(job_id).state is State.PAUSING
            time.sleep(0.7)  # until the reporter has learnt of it

    world.work(submission, joint=counting_stage(50, pause_at_two))
    coordinator.round()
    assert world.job(job_id).state is State.PAUSED
    world.store.resume(T, job_id)
    world.work(world.until_submitted(coordinator, job_id), joint=counting_stage(50))
    coordinator.round()
    job = world.job(job_id)
    assert (job.state, job.failures) == (State.SUCCEEDED, 0)
    starts = [e.data["step"] for e in world.store.events(T, job_id) if e.type == "stage.started_at"]
    assert starts[0] == 0
    assert starts[1] in (2, 3)


def test_a_cancelled_job_is_cancelled_only_when_nothing_of_it_runs(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    assert world.store.cancel(T, job_id).state is State.CANCELLING
    coordinator.round()
    assert world.cluster.statuses[submission] is Status.FAILED, "it was stopped"
    assert world.job(job_id).state is State.CANCELLING
    coordinator.round()
    assert world.job(job_id).state is State.CANCELLED


def test_a_zombie_can_finish_its_work_but_publishes_nothing(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    first = world.until_submitted(coordinator, job_id)
    zombie = world.cluster.assignment(first)
    world.store.report(T, job_id, 1, logs=["a worker has begun"])
    world.now = 301
    coordinator.round()
    world.now = 0
    time.sleep(1.1)
    second = world.until_submitted(coordinator, job_id)
    with pytest.raises(StaleAttempt):
        run_group(world.store, world.artifacts, world.folder / "scratch", zombie, all_stages())
    assert published(world.store, world.job(job_id)).keys() == {"validate", "select"}
    world.work(second)
    coordinator.round()
    assert world.job(job_id).state is State.SUCCEEDED


def test_a_worker_overtaken_in_the_middle_of_a_stage_stops_and_publishes_nothing(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    first = world.until_submitted(coordinator, job_id)

    def overtaken(step: int) -> None:
        if step == 2:
            job = world.job(job_id)
            world.store.requeue(job, "a", NonFiniteLoss("made up"), 0)
            assert world.store.claim("b", 30) is not None

    with pytest.raises(StaleAttempt):
        run_group(
            world.store, world.artifacts, world.folder / "scratch", world.cluster.assignment(first),
            all_stages(joint=counting_stage(5, overtaken)),
        )  # fmt: skip
    assert "joint.s0" not in published(world.store, world.job(job_id))


def test_a_broken_checkpoint_is_passed_over_for_the_one_before(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()

    def die_at_four(step: int) -> None:
        if step == 4:
            raise RuntimeError("killed")

    world.work(world.until_submitted(coordinator, job_id), joint=counting_stage(5, die_at_four))
    job = world.job(job_id)
    done = {name: ref.digest for name, ref in published(world.store, job).items()}
    artifact = plan_of(job).node("joint.s0").artifact_id(done, job.id)
    newest = world.store.checkpoints(T, artifact)[-1]
    Path(world.artifacts.path(newest.ref.folder, "step")).write_text("9")
    coordinator.round()
    time.sleep(1.1)
    world.work(world.until_submitted(coordinator, job_id), joint=counting_stage(5))
    starts = [e.data["step"] for e in world.store.events(T, job_id) if e.type == "stage.started_at"]
    assert starts == [0, newest.step - 1]


@pytest.mark.parametrize("away", [False, True])
def test_every_round_gives_a_sign_of_life_even_while_the_store_is_away(
    world: World, tmp_path: Path, away: bool
) -> None:
    if away:
        world.store = JobStore(connect("redis://127.0.0.1:1/0"))
    stop, sign = threading.Event(), tmp_path / "scratch" / "heartbeat"
    runner = threading.Thread(target=world.coordinator(poll_seconds=0.05).run, args=(stop,))
    runner.start()
    try:
        _wait_for(sign.exists)
        os.utime(sign, (0, 0))
        _wait_for(lambda: sign.stat().st_mtime > 0)
    finally:
        stop.set()
        runner.join(20)
    assert not runner.is_alive()


def _wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_unforeseen_fault_in_one_job_leaves_the_others_running(world: World) -> None:
    coordinator = world.coordinator(concurrency=2)
    bad, good = world.submit(), world.submit(seeds=(3,))

    def answer(job: JobRecord) -> SelectionState | None:
        if job.id == bad:
            raise RuntimeError("a bug")
        return None

    world.selections.answer = answer
    world.work(world.until_submitted(coordinator, good))
    coordinator.round()
    assert world.job(bad).state is State.FAILED
    assert world.job(good).state is State.SUCCEEDED


def test_nothing_of_an_attempt_is_left_in_scratch(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    world.work(world.until_submitted(coordinator, job_id), joint=counting_stage(3))
    assert os.listdir(world.folder / "scratch" / "work") == []


def test_a_job_that_runs_longer_than_it_may_is_ended_with_its_workers(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit(max_runtime_seconds=100)
    submission = world.until_submitted(coordinator, job_id)
    world.now = 90
    coordinator.round()
    assert world.job(job_id).state is State.RUNNING
    world.now = 101
    coordinator.round()
    job = world.job(job_id)
    assert (job.state, job.error and job.error["code"]) == (State.FAILED, "runtime_exceeded")
    assert world.cluster.statuses[submission] is Status.FAILED, "the workers were stopped"


def test_a_job_of_another_release_is_left_alone_and_others_go_on(world: World, redis_client: redis.Redis) -> None:
    strange = world.submit()
    key = f"tlm:{{{T}}}:job:{strange}"
    known = redis_client.hget(key, "resolved")
    newer = {**json.loads(known), "recipe": {**json.loads(known)["recipe"], "of_tomorrow": 1}}
    redis_client.hset(key, "resolved", json.dumps(newer))
    ours = world.submit()
    coordinator = world.coordinator()
    coordinator.round()
    with pytest.raises(UnreadableRecord, match=rf"{strange}.*of_tomorrow"):
        world.job(strange)
    assert world.until_submitted(coordinator, ours)
    redis_client.hset(key, "resolved", known)  # as a coordinator sees it that knows the field
    time.sleep(0.3)
    assert world.until_submitted(world.coordinator("b", concurrency=4), strange)
