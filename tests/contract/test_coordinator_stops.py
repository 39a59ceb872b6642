"""How a coordinator stops jobs: pause, cancel, time limits, silent workers, and workers that wait for room."""

from __future__ import annotations

import time

import pytest
import redis

from services.common.redis_client import LEASES
from services.trainer.cluster import Status
from services.trainer.selections import SelectionState
from tests.contract.coordinator_world import IdleExecutor, T, World
from tests.trainer_fakes import counting_stage
from tlm_core.artifacts import ArtifactStore, Manifest, ManifestRef
from tlm_core.errors import IndexUnavailable
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State


def test_silent_worker_is_stopped_and_the_job_requeued(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.store.report(T, job_id, 1, logs=["started"])
    world.rounds_until(coordinator, 290)
    assert world.cluster.statuses[submission] is Status.RUNNING
    world.rounds_until(coordinator, 301)
    assert world.cluster.statuses[submission] is Status.FAILED
    assert world.job(job_id).state is State.QUEUED


def test_worker_on_a_suspended_machine_gets_a_grace_period(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.store.report(T, job_id, 1, logs=["started"])
    world.store.ahead = 600
    world.rounds_until(coordinator, 890)
    assert world.cluster.statuses[submission] is Status.RUNNING
    world.rounds_until(coordinator, 901)
    assert world.cluster.statuses[submission] is Status.FAILED


def test_store_clock_behind_the_machine_ends_no_attempt(world: World, redis_client: redis.Redis) -> None:
    coordinator, job_id = world.coordinator(), world.submit(max_runtime_seconds=100)
    world.until_submitted(coordinator, job_id)
    world.store.report(T, job_id, 1, logs=["started"])
    world.store.ahead = -3600
    at = world.store.now()
    redis_client.hset(f"tlm:{{{T}}}:job:{job_id}", mapping={"updated_at": at, "running_since": at})
    coordinator.round()
    assert (world.job(job_id).state, world.cluster.stopped) == (State.RUNNING, [])


def test_worker_that_never_reports_is_stopped(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.cluster.statuses[submission] = Status.WAITING
    world.rounds_until(coordinator, 3600)
    world.cluster.statuses[submission] = Status.RUNNING
    world.rounds_until(coordinator, 3890)
    assert world.cluster.statuses[submission] is Status.RUNNING, "the time counts from the first look at which it ran"
    world.rounds_until(coordinator, 3901)
    assert world.cluster.statuses[submission] is Status.FAILED
    assert world.job(job_id).error is not None


def test_workers_waiting_for_room_are_not_stopped(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit(workers=2)
    submission = world.until_submitted(coordinator, job_id)
    world.rounds_until(coordinator, 3600)
    assert world.cluster.statuses[submission] is Status.RUNNING
    world.work(submission)
    coordinator.round()
    assert (world.job(job_id).state, world.job(job_id).attempt) == (State.SUCCEEDED, 1)


def waits(world: World, job_id: str) -> list[str]:
    return [e.data["message"] for e in world.store.events(T, job_id) if e.type == "job.waiting"]


def test_job_without_room_reports_it_once(world: World) -> None:
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


@pytest.mark.parametrize("started", [True, False])
def test_several_workers_without_room_report_it_and_keep_waiting(world: World, started: bool) -> None:
    coordinator, job_id = world.coordinator(), world.submit(workers=2)
    submission = world.until_submitted(coordinator, job_id)
    coordinator.round()
    if started:
        world.store.report(T, job_id, 1, events=[("stage.started", {"node": "joint.s0"})])
    world.rounds_until(coordinator, 31)
    assert len(waits(world, job_id)) == (not started)
    world.rounds_until(coordinator, 3600)
    assert world.cluster.statuses[submission] is (Status.FAILED if started else Status.RUNNING)


def test_silent_worker_is_stopped_after_a_wait_for_the_cluster(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.store.report(T, job_id, 1, events=[("stage.started", {"node": "joint.s0"})])
    world.cluster.away = True
    coordinator.round()
    world.cluster.away = False
    assert world.events(job_id)[-1] == "job.waiting"
    world.rounds_until(coordinator, 301)
    assert world.cluster.statuses[submission] is Status.FAILED


def test_waiting_submission_of_a_cancelled_job_does_nothing_when_it_starts(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.cluster.statuses[submission] = Status.WAITING
    world.store.cancel(T, job_id)
    coordinator.round()
    assert world.job(job_id).state is State.CANCELLED
    assert world.cluster.stopped == [submission]
    events = world.events(job_id)
    world.work(submission)
    assert world.events(job_id) == events


def test_paused_job_continues_from_its_checkpoint(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)

    def pause_at_two(step: int) -> None:
        if step == 2:
            world.store.pause(T, job_id)
            coordinator.round()
            assert world.job(job_id).state is State.PAUSING
            time.sleep(0.3)  # The reporter reads the state every 0.1 s.

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


def test_cancelled_job_stops_its_workers_first(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    assert world.store.cancel(T, job_id).state is State.CANCELLING
    coordinator.round()
    assert world.cluster.statuses[submission] is Status.FAILED, "it was stopped"
    assert world.job(job_id).state is State.CANCELLING
    coordinator.round()
    assert world.job(job_id).state is State.CANCELLED


@pytest.mark.parametrize(("verb", "state"), [("pause", State.PAUSED), ("cancel", State.CANCELLED)])
def test_stopping_a_job_waits_for_its_selection_to_stop(world: World, verb: str, state: State) -> None:
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


def test_failing_job_stops_its_selection(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit(max_runtime_seconds=100)
    world.selections.answer = lambda _: SelectionState(done=1, total=2)
    for _ in range(4):
        coordinator.round()
    world.store.ahead = 101
    coordinator.round()
    assert world.job(job_id).state is State.FAILED and len(world.selections.stopped) == 1


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_pause_or_cancel_during_the_end_of_an_attempt_takes_effect(world: World, verb: str) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.cluster.statuses[submission] = Status.FAILED
    message = world.cluster.message

    def message_during_the_end(submission: str) -> str:
        getattr(world.store, verb)(T, job_id)
        return message(submission)

    world.cluster.message = message_during_the_end  # type: ignore[method-assign]
    coordinator.round()
    coordinator.round()
    job = world.job(job_id)
    assert (job.state, job.failures) == (State.PAUSED if verb == "pause" else State.CANCELLED, 0)


def test_cancel_during_the_finish_takes_effect(world: World) -> None:
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
def test_local_stage_of_an_ended_job_never_starts(world: World, end: str) -> None:
    world.executor = idle = IdleExecutor()
    coordinator, job_id = world.coordinator(), world.submit(max_runtime_seconds=100)
    coordinator.round()
    if end == "runtime":
        world.store.ahead = 101
    else:
        getattr(world.store, end)(T, job_id)
    coordinator.round()
    assert world.job(job_id).state is {"cancel": State.CANCELLED, "pause": State.PAUSED, "runtime": State.FAILED}[end]
    assert [future.cancelled() for future in idle.futures] == [True]


def test_full_coordinator_ends_the_cancelled_job_of_a_dead_one(world: World, redis_client: redis.Redis) -> None:
    orphans, dead = [world.submit(), world.submit()], world.coordinator("dead", concurrency=2)
    for job_id in orphans:
        world.until_submitted(dead, job_id)
    own, coordinator = world.submit(), world.coordinator("b")
    world.until_submitted(coordinator, own)
    world.store.cancel(T, orphans[1])
    redis_client.zadd(LEASES, {f"{T}/{job_id}": 0 for job_id in orphans})
    coordinator.round()
    coordinator.round()
    assert [world.job(job_id).state for job_id in orphans] == [State.RUNNING, State.CANCELLED]
    assert [world.job(job_id).owner for job_id in (orphans[0], own)] == ["dead", "b"]


def test_job_deleted_by_another_process_is_released(world: World) -> None:
    deleted, coordinator = world.submit(), world.coordinator()

    def cancel_and_delete(job: JobRecord) -> SelectionState:
        world.store.cancel(T, deleted)
        world.store.delete(world.store.confirm_cancelled(job, "a"))
        raise IndexUnavailable("OpenSearch is away")

    world.selections.answer = cancel_and_delete
    for _ in range(3):
        coordinator.round()
    world.selections.answer = lambda _: None
    assert world.until_submitted(coordinator, world.submit())


def test_job_beyond_its_runtime_limit_fails_and_stops_its_workers(world: World) -> None:
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
