"""How a coordinator ends jobs and submissions: pause, cancel, time limits, and the sweep of submissions."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import redis

from services.common.jobstore import Removal
from services.common.redis_client import LEASES
from services.common.retriever_client import SelectionRun
from services.trainer.cluster import Status
from services.trainer.submissions import AttemptEnded
from services.trainer.sweeper import Sweeper
from tests.contract.coordinator_harness import CoordinatorHarness, IdleExecutor, T
from tests.support import counted
from tests.trainer_fakes import counting_stage
from tlm_core.artifacts import Manifest, ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import ClusterUnavailable, EmptySelection, IndexUnavailable, NotFound, WorkerLost
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State


def test_waiting_submission_of_a_cancelled_job_does_nothing_when_it_starts(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    harness.cluster.statuses[submission] = Status.WAITING
    harness.store.cancel(T, job_id)
    coordinator.round()
    assert harness.job(job_id).state is State.CANCELLED
    assert harness.cluster.stopped == [submission]
    events = harness.events(job_id)
    harness.work(submission)
    assert harness.events(job_id) == events


def test_paused_job_continues_from_its_checkpoint(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)

    def pause_at_two(step: int) -> None:
        if step == 2:
            harness.store.pause(T, job_id)
            coordinator.round()
            assert harness.job(job_id).state is State.PAUSING
            time.sleep(0.3)  # The reporter reads the state every 0.1 s.

    harness.work(submission, joint=counting_stage(50, pause_at_two))
    coordinator.round()
    assert harness.job(job_id).state is State.PAUSED
    harness.store.resume(T, job_id)
    harness.work(harness.until_submitted(coordinator, job_id), joint=counting_stage(50))
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures) == (State.SUCCEEDED, 0)
    starts = [e.data["step"] for e in harness.store.events(T, job_id) if e.type == "stage.started_at"]
    assert starts[0] == 0
    assert starts[1] in (2, 3)


def test_cancelled_job_stops_its_workers_first(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    assert harness.store.cancel(T, job_id).state is State.CANCELLING
    coordinator.round()
    assert harness.cluster.statuses[submission] is Status.FAILED, "it was stopped"
    assert harness.job(job_id).state is State.CANCELLING
    coordinator.round()
    assert harness.job(job_id).state is State.CANCELLED


@pytest.mark.parametrize(("verb", "state"), [("pause", State.PAUSED), ("cancel", State.CANCELLED)])
def test_stopping_a_job_waits_for_its_selection_to_stop(harness: CoordinatorHarness, verb: str, state: State) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.selections.answer = lambda _: SelectionRun(state="running", done=1, total=2)
    for _ in range(4):
        coordinator.round()
    harness.work(harness.until_submitted(coordinator, job_id, "baseline"))
    getattr(harness.store, verb)(T, job_id)
    harness.selections.running = True
    coordinator.round()
    assert harness.job(job_id).state in (State.PAUSING, State.CANCELLING) and len(harness.selections.stopped) == 1
    harness.selections.running = False
    coordinator.round()
    assert harness.job(job_id).state is state


def test_paused_job_fits_its_linear_model_after_it_resumes(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.selections.answer = lambda _: SelectionRun(state="running", done=1, total=2)
    first = harness.until_submitted(coordinator, job_id, "baseline")
    harness.cluster.statuses[first] = Status.WAITING
    harness.store.pause(T, job_id)
    coordinator.round()
    assert (harness.job(job_id).state, harness.cluster.stopped) == (State.PAUSED, [first])
    harness.selections.answer = lambda _: None
    harness.store.resume(T, job_id)
    assert harness.until_submitted(coordinator, job_id, "baseline") != first
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (harness.job(job_id).state, harness.job(job_id).failures) == (State.SUCCEEDED, 0)


def test_failed_selection_stops_the_workers_of_the_linear_model(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.selections.answer = lambda _: SelectionRun(state="running", done=1, total=2)
    fitting = harness.until_submitted(coordinator, job_id, "baseline")
    harness.selections.answer = lambda _: SelectionRun(state="failed", error=EmptySelection("no passage").as_dict())
    coordinator.round()
    assert harness.job(job_id).state is State.FAILED
    assert harness.cluster.stopped == [fitting]


def test_ended_attempt_stops_the_group_that_the_same_step_submitted(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submit = harness.cluster.submit

    def submit_and_fail(submission: str, command: Sequence[str], **needs: float) -> None:
        submit(submission, command, **needs)
        raise AttemptEnded(WorkerLost("another group ended"))

    harness.cluster.submit = submit_and_fail  # type: ignore[method-assign]
    while not harness.cluster.commands:
        coordinator.round()
    assert harness.job(job_id).state is State.QUEUED
    assert harness.cluster.stopped == list(harness.cluster.commands)


def test_sweep_stops_left_submissions_and_deletes_ended_ones(harness: CoordinatorHarness) -> None:
    coordinator, sweeper = harness.coordinator(concurrency=3), Sweeper(harness.store, harness.cluster)
    lost, runs, deleted = (harness.submit(seeds=(seed,)) for seed in range(3))
    left, running, foreign = (harness.until_submitted(coordinator, job) for job in (lost, runs, deleted))
    sweeper.sweep()
    assert harness.cluster.stopped == []
    baselines = {f"{job}.baseline.1" for job in (lost, runs, deleted)}
    assert harness.cluster.commands.keys() == {left, running, foreign} | baselines, "active attempts are left alone"
    harness.store.requeue(harness.job(lost), "a", WorkerLost("lost"), 60)
    harness.store._redis.delete(f"tlm:{{{T}}}:job:{deleted}")
    orphans = counted("tlm_orphans_total", kind="submission")
    sweeper.sweep()
    assert harness.cluster.stopped == [left]
    assert counted("tlm_orphans_total", kind="submission") == orphans + 1
    sweeper.sweep()
    assert not {left, f"{lost}.baseline.1"} & harness.cluster.commands.keys()
    assert harness.cluster.commands.keys() >= {running, foreign}


def test_sweep_lets_the_workers_of_a_succeeded_job_measure_their_device(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.until_ended(coordinator, job_id)
    submission = harness.job(job_id).submissions["main"]
    harness.cluster.statuses[submission] = Status.RUNNING
    sweeper = Sweeper(harness.store, harness.cluster)
    sweeper.sweep()
    assert harness.cluster.stopped == []
    harness.store.ahead = 130
    sweeper.sweep()
    assert harness.cluster.stopped == [submission]


def test_sweep_deletes_the_submissions_of_a_deleted_job(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.until_ended(coordinator, job_id)
    assert len(harness.cluster.commands) == 2
    harness.store.delete(harness.job(job_id), Removal(T, job_id))
    Sweeper(harness.store, harness.cluster).sweep()
    assert harness.cluster.commands == {}


def test_sweep_deletes_submissions_of_unknown_jobs_a_week_after_their_end(harness: CoordinatorHarness) -> None:
    coordinator, sweeper, job_id = harness.coordinator(), Sweeper(harness.store, harness.cluster), harness.submit()
    running = harness.until_submitted(coordinator, job_id)
    harness.cluster.ended_at[f"{job_id}.baseline.1"] = harness.store.now()
    harness.store._redis.delete(f"tlm:{{{T}}}:job:{job_id}")  # as after the restore of an older Redis
    for days, left in ((6.9, 2), (7.1, 1), (70, 1)):
        harness.store.ahead = days * 86_400
        sweeper.sweep()
        assert len(harness.cluster.commands) == left
    assert harness.cluster.statuses[running] is Status.RUNNING, "it may belong to another installation"


def test_sweep_goes_on_after_a_submission_that_ray_does_not_stop(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, jobs = harness.coordinator(concurrency=2), [harness.submit(seeds=(seed,)) for seed in range(2)]
    refused, left = (harness.until_submitted(coordinator, job) for job in jobs)
    for job in jobs:
        harness.store.requeue(harness.job(job), "a", WorkerLost("lost"), 60)
    stop = harness.cluster.stop

    def stop_others(submission: str) -> None:
        if submission == refused:
            raise ClusterUnavailable("Ray's job server returned 500.")
        stop(submission)

    monkeypatch.setattr(harness.cluster, "stop", stop_others)
    with pytest.raises(ClusterUnavailable):
        Sweeper(harness.store, harness.cluster).sweep()
    assert left in harness.cluster.stopped


def test_failing_job_stops_its_selection(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_runtime_seconds=100)
    harness.selections.answer = lambda _: SelectionRun(state="running", done=1, total=2)
    for _ in range(4):
        coordinator.round()
    harness.ran(job_id, 101)
    coordinator.round()
    assert harness.job(job_id).state is State.FAILED and len(harness.selections.stopped) == 1


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_pause_or_cancel_during_the_end_of_an_attempt_takes_effect(harness: CoordinatorHarness, verb: str) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    harness.cluster.statuses[submission] = Status.FAILED
    ending = harness.cluster.ending

    def verb_during_the_end(submission: str) -> WorkerLost:
        getattr(harness.store, verb)(T, job_id)
        return ending(submission)

    harness.cluster.ending = verb_during_the_end  # type: ignore[method-assign]
    coordinator.round()
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures) == (State.PAUSED if verb == "pause" else State.CANCELLED, 0)


def test_cancel_during_the_finish_takes_effect(harness: CoordinatorHarness) -> None:
    class CancellingStore(ArtifactStore):
        armed = False

        def manifest(self, ref: ManifestRef) -> Manifest:
            if self.armed and harness.job(job_id).state is State.RUNNING:
                harness.store.cancel(T, job_id)
            return super().manifest(ref)

    harness.artifacts = storage = CancellingStore(str(harness.folder / "storage"), harness.folder / "cache")
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.work(harness.until_submitted(coordinator, job_id))
    storage.armed = True
    coordinator.round()
    coordinator.round()
    assert harness.job(job_id).state is State.CANCELLED


@pytest.mark.parametrize("end", ["cancel", "pause", "runtime"])
def test_local_stage_of_an_ended_job_never_starts(harness: CoordinatorHarness, end: str) -> None:
    harness.executor = idle = IdleExecutor()
    coordinator, job_id = harness.coordinator(), harness.submit(max_runtime_seconds=100)
    coordinator.round()
    if end == "runtime":
        harness.ran(job_id, 101)
    else:
        getattr(harness.store, end)(T, job_id)
    coordinator.round()
    assert harness.job(job_id).state is {"cancel": State.CANCELLED, "pause": State.PAUSED, "runtime": State.FAILED}[end]
    assert [future.cancelled() for future in idle.futures] == [True]


def test_full_coordinator_ends_the_cancelled_job_of_a_dead_one(
    harness: CoordinatorHarness, redis_client: redis.Redis
) -> None:
    orphans, dead = [harness.submit(), harness.submit()], harness.coordinator("dead", concurrency=2)
    for job_id in orphans:
        harness.until_submitted(dead, job_id)
    own, coordinator = harness.submit(), harness.coordinator("b")
    coordinator.round()
    dead.round()  # It still lives.
    harness.until_submitted(coordinator, own)
    harness.store.cancel(T, orphans[1])
    redis_client.zadd(LEASES, {f"{T}/{job_id}": 0 for job_id in orphans})
    coordinator.round()
    coordinator.round()
    assert [harness.job(job_id).state for job_id in orphans] == [State.RUNNING, State.CANCELLED]
    assert [harness.job(job_id).owner for job_id in (orphans[0], own)] == ["dead", "b"]


def test_job_deleted_by_another_process_is_released(harness: CoordinatorHarness) -> None:
    deleted, coordinator = harness.submit(), harness.coordinator()

    def cancel_and_delete(job: JobRecord) -> SelectionRun:
        harness.store.cancel(T, deleted)
        harness.store.delete(harness.store.confirm_cancelled(job, "a"), Removal(T, deleted))
        raise IndexUnavailable("OpenSearch is away")

    harness.selections.answer = cancel_and_delete
    for _ in range(3):
        coordinator.round()
    with pytest.raises(NotFound):
        harness.job(deleted)
    harness.selections.answer = lambda _: None
    assert harness.until_submitted(coordinator, harness.submit())


def test_job_beyond_its_runtime_limit_fails_and_stops_its_workers(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_runtime_seconds=100)
    submission = harness.until_submitted(coordinator, job_id)
    harness.ran(job_id, 90)
    coordinator.round()
    assert harness.job(job_id).state is State.RUNNING
    harness.ran(job_id, 101)
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.error and job.error["code"]) == (State.FAILED, "runtime_exceeded")
    assert harness.cluster.statuses[submission] is Status.FAILED, "the workers were stopped"
