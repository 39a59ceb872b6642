"""How a coordinator ends work that hangs, that is silent, or that waits for room."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn

import pytest
import redis

from services.common.retriever_client import SelectionRun
from services.trainer.cluster import Status
from services.trainer.coordinator import Coordinator
from services.trainer.local_stages import LocalStages, LocalThreads
from services.trainer.sweeper import Sweeper
from tests.contract.coordinator_harness import CoordinatorHarness, InlineExecutor, T
from tests.support import wait_for
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import NotFound, StoreUnavailable
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State


def test_silent_worker_is_stopped_and_the_job_requeued(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_working(coordinator, job_id)
    harness.rounds_until(coordinator, 44)
    assert harness.cluster.statuses[submission] is Status.RUNNING
    harness.rounds_until(coordinator, 46)
    assert harness.cluster.statuses[submission] is Status.FAILED
    assert harness.job(job_id).state is State.QUEUED


def test_hung_worker_is_stopped_although_it_reports(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    harness.beat(job_id, idle=49.0, limit=50.0)
    coordinator.round()
    assert harness.cluster.statuses[submission] is Status.RUNNING
    harness.beat(job_id, idle=51.0, limit=50.0)
    coordinator.round()
    assert harness.cluster.statuses[submission] is Status.FAILED
    error = harness.job(job_id).error
    assert error is not None and "no progress for 51 s" in str(error["message"])


def test_hung_group_is_stopped_although_another_group_works(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.selections.answer = lambda _: SelectionRun(state="running", done=1, total=2)
    fitting = harness.until_submitted(coordinator, job_id, "baseline")
    harness.beat(job_id, "baseline", idle=601.0)
    harness.beat(job_id, "main")
    coordinator.round()
    assert harness.cluster.stopped == [fitting]


def test_worker_on_a_suspended_machine_gets_a_grace_period(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_working(coordinator, job_id)
    harness.store.ahead = 600
    harness.rounds_until(coordinator, 644)
    assert harness.cluster.statuses[submission] is Status.RUNNING
    harness.rounds_until(coordinator, 646)
    assert harness.cluster.statuses[submission] is Status.FAILED


def test_silent_worker_is_stopped_although_rounds_are_slow(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_working(coordinator, job_id)
    real, status = time.monotonic, harness.cluster.status
    monkeypatch.setattr(time, "monotonic", lambda: real() + harness.store.ahead)

    def slow(submission: str) -> Status:
        harness.store.ahead += 25
        return status(submission)

    monkeypatch.setattr(harness.cluster, "status", slow)
    for _ in range(2):
        coordinator.round()
        assert harness.cluster.statuses[submission] is Status.RUNNING
    coordinator.round()
    assert harness.cluster.statuses[submission] is Status.FAILED


def test_step_without_an_answer_of_redis_starts_a_grace_period(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_working(coordinator, job_id)
    harness.rounds_until(coordinator, 30)

    def away(*_: object) -> NoReturn:
        monkeypatch.undo()
        raise StoreUnavailable("Redis does not answer.")

    monkeypatch.setattr(harness.store, "artifacts", away)
    coordinator.round()
    harness.rounds_until(coordinator, 60)
    assert harness.cluster.statuses[submission] is Status.RUNNING
    harness.rounds_until(coordinator, 76)
    assert harness.cluster.statuses[submission] is Status.FAILED


def test_store_clock_behind_the_machine_ends_no_attempt(harness: CoordinatorHarness, redis_client: redis.Redis) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_runtime_seconds=100)
    harness.until_submitted(coordinator, job_id)
    harness.store.report(T, job_id, 1, logs=["started"])
    harness.store.ahead = -3600
    at = harness.store.now()
    redis_client.hset(f"tlm:{{{T}}}:job:{job_id}", mapping={"updated_at": at, "running_since": at})
    coordinator.round()
    assert (harness.job(job_id).state, harness.cluster.stopped) == (State.RUNNING, [])


@pytest.mark.parametrize("reports", [True, False])
def test_silent_worker_is_stopped_after_the_clock_went_back(harness: CoordinatorHarness, reports: bool) -> None:
    coordinator, job_id = harness.coordinator(first_report_seconds=45), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    if reports:
        harness.beat(job_id)
    coordinator.round()
    harness.store.ahead = -3600
    harness.rounds_until(coordinator, 44 - 3600)
    assert harness.cluster.statuses[submission] is Status.RUNNING
    harness.rounds_until(coordinator, 46 - 3600)
    assert harness.cluster.statuses[submission] is Status.FAILED


def test_pause_ends_in_time_although_the_clock_went_back(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.until_submitted(coordinator, job_id)
    harness.store.pause(T, job_id)
    coordinator.round()
    harness.store.ahead = -3600
    harness.rounds_until(coordinator, 125 - 3600)
    coordinator.round()
    assert harness.job(job_id).state is State.PAUSED


def test_clock_that_steps_forward_ends_no_job(harness: CoordinatorHarness, redis_client: redis.Redis) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_runtime_seconds=100)
    harness.until_submitted(coordinator, job_id)
    redis_client.hset(f"tlm:{{{T}}}:job:{job_id}", "running_since", harness.store.now() - 3600)
    harness.store.ahead = 3600
    for _ in range(3):
        coordinator.round()
    assert harness.job(job_id).state is State.RUNNING
    assert 60 <= harness.job(job_id).ran_seconds < 70


def test_worker_that_never_reports_is_stopped(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    harness.cluster.statuses[submission] = Status.WAITING
    harness.rounds_until(coordinator, 3600)
    harness.cluster.statuses[submission] = Status.RUNNING
    harness.rounds_until(coordinator, 3890)
    assert harness.cluster.statuses[submission] is Status.RUNNING, "the time counts from the first look at which it ran"
    harness.rounds_until(coordinator, 3901)
    assert harness.cluster.statuses[submission] is Status.FAILED
    assert harness.job(job_id).error is not None


# Both start through Ray Train.
DISTRIBUTED = pytest.mark.parametrize(("workers", "gpus"), [(2, 0.0), (1, 1.0)])


def rounds_while_waiting(harness: CoordinatorHarness, coordinator: Coordinator, job_id: str, ahead: float) -> None:
    """Run rounds until the clock is `ahead` seconds ahead, while the submission reports that it waits."""
    while harness.store.ahead < ahead:
        harness.beat(job_id, phase="waiting")
        harness.rounds_until(coordinator, harness.store.ahead + 30)


@DISTRIBUTED
def test_submission_that_never_reports_is_stopped(harness: CoordinatorHarness, workers: int, gpus: float) -> None:
    coordinator, job_id = harness.coordinator(worker_gpus=gpus), harness.submit(workers=workers)
    submission = harness.until_submitted(coordinator, job_id)
    harness.rounds_until(coordinator, 290)
    assert harness.cluster.statuses[submission] is Status.RUNNING
    harness.rounds_until(coordinator, 301)
    assert harness.cluster.statuses[submission] is Status.FAILED
    error = harness.job(job_id).error
    assert error is not None and "did not start within 30" in str(error["message"])


@DISTRIBUTED
def test_workers_that_hang_at_their_start_are_stopped(harness: CoordinatorHarness, workers: int, gpus: float) -> None:
    coordinator, job_id = harness.coordinator(worker_gpus=gpus), harness.submit(workers=workers)
    submission = harness.until_submitted(coordinator, job_id)
    harness.beat(job_id, phase="starting")
    for harness.store.ahead in range(0, 291, 10):
        coordinator.round()
        harness.beat(job_id, phase="waiting")
    assert harness.cluster.statuses[submission] is Status.RUNNING
    harness.rounds_until(coordinator, 301)
    assert harness.cluster.statuses[submission] is Status.FAILED


@DISTRIBUTED
def test_workers_waiting_for_room_are_not_stopped(harness: CoordinatorHarness, workers: int, gpus: float) -> None:
    coordinator, job_id = harness.coordinator(worker_gpus=gpus), harness.submit(workers=workers)
    submission = harness.until_submitted(coordinator, job_id)
    rounds_while_waiting(harness, coordinator, job_id, 3600)
    assert harness.cluster.statuses[submission] is Status.RUNNING
    harness.work(submission)
    coordinator.round()
    assert (harness.job(job_id).state, harness.job(job_id).attempt) == (State.SUCCEEDED, 1)


@DISTRIBUTED
def test_workers_that_do_not_start_in_their_room_are_stopped(
    harness: CoordinatorHarness, workers: int, gpus: float
) -> None:
    coordinator, job_id = harness.coordinator(worker_gpus=gpus), harness.submit(workers=workers)
    submission = harness.until_submitted(coordinator, job_id)
    rounds_while_waiting(harness, coordinator, job_id, 3600)
    harness.rounds_until(coordinator, 3600 + 260)
    assert harness.cluster.statuses[submission] is Status.RUNNING
    harness.rounds_until(coordinator, 3600 + 301)
    assert harness.cluster.statuses[submission] is Status.FAILED
    job = harness.job(job_id)
    assert (job.state, job.failures, job.losses) == (State.QUEUED, 0, 1)
    assert job.error is not None and "although Ray had free resources" in str(job.error["message"])


def waits(harness: CoordinatorHarness, job_id: str) -> list[str]:
    return [e.data["message"] for e in harness.store.events(T, job_id) if e.type == "job.waiting"]


def test_submission_that_the_head_lost_is_tried_again(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    harness.cluster.statuses[submission] = Status.WAITING
    harness.cluster.lost.add(submission)
    harness.rounds_until(coordinator, 50)
    assert harness.cluster.released == []
    harness.rounds_until(coordinator, 70)
    assert harness.cluster.released == [submission]
    Sweeper(harness.store, harness.cluster).sweep()
    assert harness.cluster.released == [submission] * 2
    harness.store.expire_deadlines()
    job = harness.until_ended(coordinator, job_id)
    assert (job.state, job.attempt, job.failures) == (State.SUCCEEDED, 2, 0)


def test_lost_submission_of_an_adopted_job_is_left_to_its_owner(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    harness.cluster.statuses[submission] = Status.WAITING
    coordinator.round()

    def adopted_meanwhile(_: str) -> bool:
        harness.store.expire_deadlines()
        assert harness.store.claim("other", 30)
        return True

    monkeypatch.setattr(harness.cluster, "is_lost", adopted_meanwhile)
    harness.store.ahead = 70
    coordinator.round()
    assert harness.cluster.released == []
    assert (harness.job(job_id).owner, harness.job(job_id).attempt) == ("other", 1)


def test_job_without_room_reports_it_once(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(worker_cpus=3.0), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    harness.cluster.statuses[submission] = Status.WAITING
    for harness.store.ahead in (0, 59, 61, 122, 3600):
        coordinator.round()
        assert len(waits(harness, job_id)) == (harness.store.ahead > 60)
    assert "Each worker needs 3 CPUs" in waits(harness, job_id)[0]
    harness.work(submission)
    coordinator.round()
    assert harness.job(job_id).state is State.SUCCEEDED


@pytest.mark.parametrize("started", [True, False])
def test_several_workers_without_room_report_it_and_keep_waiting(harness: CoordinatorHarness, started: bool) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(workers=2)
    submission = harness.until_submitted(coordinator, job_id)
    coordinator.round()
    harness.beat(job_id, phase="working" if started else "waiting")
    harness.rounds_until(coordinator, 61)
    assert harness.cluster.statuses[submission] is (Status.FAILED if started else Status.RUNNING)
    assert len(waits(harness, job_id)) == (not started)


def test_silent_worker_is_stopped_after_a_wait_for_the_cluster(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_working(coordinator, job_id)
    harness.cluster.away = True
    coordinator.round()
    harness.cluster.away = False
    assert harness.events(job_id)[-1] == "job.waiting"
    harness.rounds_until(coordinator, 46)
    assert harness.cluster.statuses[submission] is Status.FAILED


def test_selection_that_hangs_is_stopped(harness: CoordinatorHarness) -> None:
    coordinator, job_id, runs = harness.coordinator(), harness.submit(), [SelectionRun(state="running")]
    harness.selections.answer = lambda _: runs[-1]
    harness.work(harness.until_submitted(coordinator, job_id, "baseline"))
    harness.rounds_until(coordinator, 3600)  # It waits for its index.
    for done, ahead in ((1, 5300), (2, 7000)):
        runs.append(SelectionRun(state="running", done=done, total=9))
        harness.rounds_until(coordinator, ahead)
    assert (harness.job(job_id).state, harness.selections.stopped) == (State.RUNNING, [])
    harness.rounds_until(coordinator, 7200)
    error = harness.job(job_id).error
    assert harness.job(job_id).state is State.QUEUED and len(harness.selections.stopped) == 1
    assert error is not None and "selection made no progress" in str(error["message"])


@pytest.mark.parametrize("end", ["cancel", None])
def test_local_stage_that_hangs_blocks_no_other_job(harness: CoordinatorHarness, end: str | None) -> None:
    wake, local, pools = threading.Event(), harness.local, list[ThreadPoolExecutor]()

    def hanging(job: JobRecord, *args: Any) -> ManifestRef:
        if job.id == hung:
            wake.wait(60)
        return local(job, *args)

    def new_threads() -> ThreadPoolExecutor:
        pools.append(ThreadPoolExecutor(1))
        return pools[-1]

    coordinator = harness.coordinator(local_seconds=0.2, concurrency=2)
    coordinator.local = LocalThreads(hanging, new_threads)
    hung, other = harness.submit(), harness.submit()
    coordinator.round()
    if end:
        harness.store.cancel(T, hung)
    try:
        wait_for(lambda: coordinator.round() or harness.job(other).submissions, 20)
        job = harness.job(hung)
        if end:
            assert job.state is State.CANCELLED
        else:
            assert (job.state, job.losses) == (State.QUEUED, 1)
            assert "ran for 0 minutes" in job.error["message"]
        assert len(pools) == 2
    finally:
        wake.set()
        for pool in pools:
            pool.shutdown()


def test_stage_that_runs_again_later_does_not_count_as_hung(harness: CoordinatorHarness) -> None:
    """The first run of the same artifact ended, and its files were lost long after."""
    stages = LocalStages(LocalThreads(harness.local, InlineExecutor))
    for _ in range(2):
        stages.runs["art"] = run = Future[ManifestRef]()
        run.set_running_or_notify_cancel()
        assert not stages.give_up_hung(0.2)
        run.set_exception(NotFound("lost"))
        time.sleep(0.3)
        assert not stages.give_up_hung(0.2)
