"""How a coordinator ends what runs: pause, cancel, limits of time, workers that tell nothing or wait for room."""

from __future__ import annotations

import time

import pytest
import redis

from services.common.redis_client import LEASES
from services.trainer.cluster import Status
from services.trainer.selections import SelectionState
from tests.contract.coordinator_world import Busy, T, World
from tests.trainer_fakes import counting_stage
from tlm_core.artifacts import ArtifactStore, Manifest, ManifestRef
from tlm_core.errors import IndexUnavailable
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State


def test_a_worker_that_tells_nothing_is_stopped_and_replaced(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.store.report(T, job_id, 1, logs=["a worker has begun"])
    world.rounds_until(coordinator, 290)
    assert world.cluster.statuses[submission] is Status.RUNNING
    world.rounds_until(coordinator, 301)
    assert world.cluster.statuses[submission] is Status.FAILED
    assert world.job(job_id).state is State.QUEUED


def test_a_worker_that_slept_with_its_machine_is_given_time_to_tell_something(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.store.report(T, job_id, 1, logs=["a worker has begun"])
    world.store.ahead = 600
    world.rounds_until(coordinator, 890)
    assert world.cluster.statuses[submission] is Status.RUNNING
    world.rounds_until(coordinator, 901)
    assert world.cluster.statuses[submission] is Status.FAILED


def test_a_store_whose_clock_is_behind_that_of_the_machine_ends_no_attempt(
    world: World, redis_client: redis.Redis
) -> None:
    coordinator, job_id = world.coordinator(), world.submit(max_runtime_seconds=100)
    world.until_submitted(coordinator, job_id)
    world.store.report(T, job_id, 1, logs=["a worker has begun"])
    world.store.ahead = -3600
    at = world.store.now()
    redis_client.hset(f"tlm:{{{T}}}:job:{job_id}", mapping={"updated_at": at, "running_since": at})
    coordinator.round()
    assert (world.job(job_id).state, world.cluster.stopped) == (State.RUNNING, [])


def test_a_worker_that_hangs_before_its_first_word_is_replaced(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.cluster.statuses[submission] = Status.WAITING
    world.rounds_until(coordinator, 3600)
    world.cluster.statuses[submission] = Status.RUNNING
    world.rounds_until(coordinator, 3890)
    assert world.cluster.statuses[submission] is Status.RUNNING, "it counts from when it was seen to run"
    world.rounds_until(coordinator, 3901)
    assert world.cluster.statuses[submission] is Status.FAILED
    assert world.job(job_id).error is not None


def test_workers_that_wait_for_room_in_the_cluster_are_not_taken_for_dead(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit(workers=2)
    submission = world.until_submitted(coordinator, job_id)
    world.rounds_until(coordinator, 3600)
    assert world.cluster.statuses[submission] is Status.RUNNING
    world.work(submission)
    coordinator.round()
    assert (world.job(job_id).state, world.job(job_id).attempt) == (State.SUCCEEDED, 1)


def waits(world: World, job_id: str) -> list[str]:
    return [e.data["message"] for e in world.store.events(T, job_id) if e.type == "job.waiting"]


def test_a_job_without_room_in_the_cluster_says_so_once(world: World) -> None:
    coordinator, job_id = world.coordinator(worker_cpus=3.0), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.cluster.statuses[submission] = Status.WAITING
    for world.store.ahead in (0, 29, 31, 62, 3600):
        coordinator.round()
        assert len(waits(world, job_id)) == (world.store.ahead > 30)
    assert "1 worker(s) of 3 CPU(s)" in waits(world, job_id)[0]
    world.work(submission)
    coordinator.round()
    assert world.job(job_id).state is State.SUCCEEDED


@pytest.mark.parametrize("begun", [True, False])
def test_several_workers_without_room_say_so_and_are_not_taken_for_dead(world: World, begun: bool) -> None:
    coordinator, job_id = world.coordinator(), world.submit(workers=2)
    submission = world.until_submitted(coordinator, job_id)
    coordinator.round()
    if begun:
        world.store.report(T, job_id, 1, events=[("stage.started", {"node": "joint.s0"})])
    world.rounds_until(coordinator, 31)
    assert len(waits(world, job_id)) == (not begun)
    world.rounds_until(coordinator, 3600)
    assert world.cluster.statuses[submission] is (Status.FAILED if begun else Status.RUNNING)


def test_a_worker_is_taken_for_dead_though_its_job_has_waited_for_the_cluster(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.store.report(T, job_id, 1, events=[("stage.started", {"node": "joint.s0"})])
    world.cluster.away = True
    coordinator.round()
    world.cluster.away = False
    assert world.events(job_id)[-1] == "job.waiting"
    world.rounds_until(coordinator, 301)
    assert world.cluster.statuses[submission] is Status.FAILED


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
            time.sleep(0.3)  # until the reporter has learnt of it, which does not wait for its next report

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


@pytest.mark.parametrize(("verb", "state"), [("pause", State.PAUSED), ("cancel", State.CANCELLED)])
def test_a_selection_under_way_is_stopped_and_its_end_waited_for(world: World, verb: str, state: State) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    world.selections.answer = lambda _: SelectionState(done=1, total=2)
    for _ in range(4):
        coordinator.round()
    getattr(world.store, verb)(T, job_id)
    world.selections.running = True
    coordinator.round()
    assert world.job(job_id).state in (State.PAUSING, State.CANCELLING) and len(world.selections.stopped) == 1
    world.selections.running = False
    coordinator.round()
    assert world.job(job_id).state is state


def test_a_job_that_fails_while_it_selects_leaves_no_selection_under_way(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit(max_runtime_seconds=100)
    world.selections.answer = lambda _: SelectionState(done=1, total=2)
    for _ in range(4):
        coordinator.round()
    world.store.ahead = 101
    coordinator.round()
    assert world.job(job_id).state is State.FAILED and len(world.selections.stopped) == 1


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_a_stop_that_comes_while_an_attempt_is_ended_is_followed(world: World, verb: str) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.cluster.statuses[submission] = Status.FAILED
    message = world.cluster.message

    def asked_just_now(submission: str) -> str:
        getattr(world.store, verb)(T, job_id)
        return message(submission)

    world.cluster.message = asked_just_now  # type: ignore[method-assign]
    coordinator.round()
    coordinator.round()
    job = world.job(job_id)
    assert (job.state, job.failures) == (State.PAUSED if verb == "pause" else State.CANCELLED, 0)


def test_a_cancel_that_comes_while_a_job_is_finished_is_followed(world: World) -> None:
    class CancellingStore(ArtifactStore):
        armed = False

        def manifest(self, ref: ManifestRef) -> Manifest:
            if self.armed and world.job(job_id).state is State.RUNNING:
                world.store.cancel(T, job_id)
            return super().manifest(ref)

    world.artifacts = storage = CancellingStore(str(world.folder / "storage"), world.folder / "cache")
    coordinator, job_id = world.coordinator(), world.submit()
    world.work(world.until_submitted(coordinator, job_id))
    storage.armed = True
    coordinator.round()
    coordinator.round()
    assert world.job(job_id).state is State.CANCELLED


@pytest.mark.parametrize("end", ["cancel", "pause", "runtime"])
def test_a_stage_that_waits_for_a_thread_is_not_begun_once_its_job_has_ended(world: World, end: str) -> None:
    world.executor = busy = Busy()
    coordinator, job_id = world.coordinator(), world.submit(max_runtime_seconds=100)
    coordinator.round()
    if end == "runtime":
        world.store.ahead = 101
    else:
        getattr(world.store, end)(T, job_id)
    coordinator.round()
    assert world.job(job_id).state is {"cancel": State.CANCELLED, "pause": State.PAUSED, "runtime": State.FAILED}[end]
    assert [future.cancelled() for future in busy.given] == [True]


def test_a_cancelled_job_that_its_coordinator_left_is_ended_by_one_that_drives_as_many_as_it_may(
    world: World, redis_client: redis.Redis
) -> None:
    left, gone = [world.submit(), world.submit()], world.coordinator("gone", lease_seconds=30.0, concurrency=2)
    for job_id in left:
        world.until_submitted(gone, job_id)
    own, coordinator = world.submit(), world.coordinator("b", lease_seconds=30.0)
    world.until_submitted(coordinator, own)
    world.store.cancel(T, left[1])
    redis_client.zadd(LEASES, {f"{T}/{job_id}": 0 for job_id in left})
    coordinator.round()
    coordinator.round()
    assert [world.job(job_id).state for job_id in left] == [State.RUNNING, State.CANCELLED]
    assert [world.job(job_id).owner for job_id in (left[0], own)] == ["gone", "b"]


def test_a_job_that_was_ended_elsewhere_and_deleted_is_let_go_and_others_go_on(world: World) -> None:
    deleted, coordinator = world.submit(), world.coordinator()

    def ended_elsewhere(job: JobRecord) -> SelectionState:
        world.store.cancel(T, deleted)
        world.store.delete(world.store.confirm_cancelled(job, "a"))
        raise IndexUnavailable("OpenSearch is away")

    world.selections.answer = ended_elsewhere
    for _ in range(3):
        coordinator.round()
    world.selections.answer = lambda _: None
    assert world.until_submitted(coordinator, world.submit())


def test_a_job_that_runs_longer_than_it_may_is_ended_with_its_workers(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit(max_runtime_seconds=100)
    submission = world.until_submitted(coordinator, job_id)
    world.store.ahead = 90
    coordinator.round()
    assert world.job(job_id).state is State.RUNNING
    world.store.ahead = 101
    coordinator.round()
    job = world.job(job_id)
    assert (job.state, job.error and job.error["code"]) == (State.FAILED, "runtime_exceeded")
    assert world.cluster.statuses[submission] is Status.FAILED, "the workers were stopped"
