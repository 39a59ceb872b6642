"""The coordinator while workers, submissions and its own rounds fail."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
import redis

from services.api.views import job_summary
from services.common.jobstore import CheckpointRef
from services.common.redis_client import key
from services.common.retriever_client import SelectionRun
from services.common.situation import Situation
from services.trainer.cluster import Status
from services.trainer.coordinator import Coordinator
from services.trainer.worker import GroupRunner
from tests.contract.coordinator_harness import CoordinatorHarness, T
from tests.support import wait_for
from tests.trainer_fakes import all_stages, counting_stage, run_group
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import IllegalTransition, NonFiniteLoss, StaleAttempt, Unavailable, WorkerLost
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State


def test_next_attempt_continues_from_the_checkpoint_of_a_killed_worker(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()

    def die_at_three(step: int) -> None:
        if step == 3:
            raise RuntimeError("killed")

    first = harness.until_submitted(coordinator, job_id)
    harness.work(first, joint=counting_stage(5, die_at_three))
    coordinator.round()
    assert (harness.job(job_id).state, harness.job(job_id).failures) == (State.QUEUED, 1)
    harness.store.expire_deadlines()
    second = harness.until_submitted(coordinator, job_id)
    assert second != first
    harness.work(second, joint=counting_stage(5))
    coordinator.round()
    assert harness.job(job_id).state is State.SUCCEEDED
    starts = [e.data["step"] for e in harness.store.events(T, job_id) if e.type == "stage.started_at"]
    assert starts == [0, 2]


def test_requeued_job_keeps_its_slot_while_it_backs_off(harness: CoordinatorHarness) -> None:
    coordinator, job_id, later = harness.coordinator(), harness.submit(), harness.submit(seeds=(3,))
    lost = harness.until_submitted(coordinator, job_id)
    harness.cluster.statuses[lost] = Status.FAILED
    coordinator.round()
    coordinator.round()
    assert [harness.job(job).state for job in (job_id, later)] == [State.QUEUED, State.QUEUED]
    harness.store.expire_deadlines()
    assert harness.until_submitted(coordinator, job_id) != lost
    assert harness.job(later).state is State.QUEUED


def lose_worker(harness: CoordinatorHarness, coordinator: Coordinator, job_id: str, steps: int) -> JobRecord:
    """Lose the worker of the job's next submission after some steps of the joint stage."""

    def lose(step: int) -> None:
        if step > steps:
            raise SystemExit(137)

    submission = harness.until_submitted(coordinator, job_id)
    with pytest.raises(SystemExit):
        harness.work(submission, joint=counting_stage(50, lose))
    harness.cluster.statuses[submission] = Status.FAILED
    coordinator.round()
    harness.store.expire_deadlines()
    return harness.job(job_id)


def test_lost_workers_are_free_while_checkpoints_advance(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=1)
    for attempt in range(1, 6):
        job = lose_worker(harness, coordinator, job_id, steps=3 * attempt)
        assert (job.state, job.failures, job.losses) == (State.QUEUED, 0, 1)
    harness.work(harness.until_submitted(coordinator, job_id), joint=counting_stage(16))
    coordinator.round()
    assert harness.job(job_id).state is State.SUCCEEDED


def test_checkpoint_published_during_the_step_resets_the_losses(
    harness: CoordinatorHarness, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=1)
    submission, status = harness.until_submitted(coordinator, job_id), harness.cluster.status
    redis_client.hset(key(T, "job", job_id), "losses", 2)

    def lost_after_a_checkpoint(name: str) -> Status:
        monkeypatch.setattr(harness.cluster, "status", status)
        checkpoint = CheckpointRef(
            ref=ManifestRef(folder="x", digest="1" * 64), step=1, node="joint.s0", job=job_id, attempt=1
        )
        harness.store.publish_checkpoint(T, "art", checkpoint)
        harness.cluster.statuses[submission] = Status.FAILED
        return status(name)

    monkeypatch.setattr(harness.cluster, "status", lost_after_a_checkpoint)
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures, job.losses) == (State.QUEUED, 0, 1), job.error


def test_fault_of_one_worker_is_reported_instead_of_lost_workers(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(workers=2)
    submission = harness.until_submitted(coordinator, job_id)
    lost = WorkerLost("Worker lost its connection to the others.")
    for error in (lost, NonFiniteLoss("The loss is not finite."), lost):
        harness.store.report(T, job_id, 1, events=[("attempt.error", error.as_dict())])
    harness.cluster.statuses[submission] = Status.FAILED
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.error and job.error["code"]) == (State.FAILED, "non_finite_loss")


def test_outage_of_the_hub_is_reported_instead_of_lost_workers(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(workers=2)
    submission = harness.until_submitted(coordinator, job_id)
    for error in (Unavailable("The hub does not answer."), WorkerLost("Worker lost its connection to the others.")):
        harness.store.report(T, job_id, 1, events=[("attempt.error", error.as_dict())])
    harness.cluster.statuses[submission] = Status.FAILED
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.error and job.error["code"]) == (State.QUEUED, "unavailable")


def test_three_lost_workers_without_a_checkpoint_are_one_fault(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=2)
    jobs = [lose_worker(harness, coordinator, job_id, steps=0) for _ in range(6)]
    assert [(job.failures, job.losses) for job in jobs] == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert [job.interruptions for job in jobs] == [1, 2, 2, 3, 4, 4], "each end counts once"
    assert [job.state for job in jobs] == [State.QUEUED] * 5 + [State.FAILED]


def test_drained_worker_writes_a_checkpoint_first(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)

    def drain_at_two(step: int) -> None:
        if step == 2:
            harness.store.report(T, job_id, 1, draining=True)
            time.sleep(0.3)  # The reporter reads it every 0.1 s.

    harness.work(submission, joint=counting_stage(50, drain_at_two))
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures, job.error and job.error["code"]) == (State.QUEUED, 0, "worker_lost")
    assert "another process of the attempt received SIGTERM, or because the cluster has room for" in str(job.error)
    harness.store.expire_deadlines()
    harness.work(harness.until_submitted(coordinator, job_id), joint=counting_stage(3))
    coordinator.round()
    starts = [e.data["step"] for e in harness.store.events(T, job_id) if e.type == "stage.started_at"]
    assert (starts, harness.job(job_id).state) == ([0, 2], State.SUCCEEDED)


def test_sigterm_is_the_reason_of_the_worker_that_receives_it(harness: CoordinatorHarness) -> None:
    coordinator, job_id, draining = harness.coordinator(), harness.submit(), threading.Event()
    assignment = harness.cluster.assignment(harness.until_submitted(coordinator, job_id))

    def drain_at_two(step: int) -> None:
        if step == 2:
            draining.set()

    stages = all_stages(joint=counting_stage(50, drain_at_two))
    GroupRunner(harness.store, harness.artifacts, harness.folder / "scratch", stages, draining=draining).run(assignment)
    (error,) = [event.data for event in harness.store.events(T, job_id) if event.type == "attempt.error"]
    assert error["message"] == "Worker was stopped with its machine (SIGTERM)."


def test_error_of_a_round_delays_only_the_next_round(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator, job_id, stop = harness.coordinator(poll_seconds=0.01), harness.submit(), threading.Event()
    claim, errors = harness.store.claim, [ValueError("unexpected"), KeyError("unexpected")]

    def failing(*args: Any) -> JobRecord | None:
        if errors:
            raise errors.pop()
        return claim(*args)

    monkeypatch.setattr(harness.store, "claim", failing)
    runner = threading.Thread(target=coordinator.run, args=(stop,))
    runner.start()
    try:
        wait_for(lambda: harness.job(job_id).state is State.RUNNING, 10)
    finally:
        stop.set()
        runner.join(20)
    assert [record.exc_info is not None for record in caplog.records if "'rounds' failed" in record.message] == [
        True
    ] * 2


def test_error_in_the_step_of_a_job_stops_no_other_job(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, damaged, other = harness.coordinator(concurrency=2), harness.submit(), harness.submit(seeds=(3,))
    coordinator.round()
    read = harness.store.get

    def failing(tenant: str, job_id: str) -> JobRecord:
        if job_id == damaged:
            raise ValueError("unexpected")
        return read(tenant, job_id)

    monkeypatch.setattr(harness.store, "get", failing)
    harness.until_submitted(coordinator, other)
    assert list(coordinator.task.skipped) == [f"job {damaged}"]


def test_lost_submission_is_replaced_by_a_new_attempt(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    lost = harness.until_submitted(coordinator, job_id)
    harness.cluster.commands.clear()
    harness.cluster.statuses.clear()
    coordinator.round()
    assert harness.job(job_id).state is State.QUEUED
    harness.store.expire_deadlines()
    assert harness.until_submitted(coordinator, job_id) != lost


def test_worker_of_an_ended_attempt_publishes_nothing(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    first = harness.until_submitted(coordinator, job_id)
    ended = harness.cluster.assignment(first)
    harness.beat(job_id)
    harness.rounds_until(coordinator, 46)
    harness.store.ahead = 0
    harness.store.expire_deadlines()
    second = harness.until_submitted(coordinator, job_id)
    with pytest.raises(StaleAttempt):
        run_group(harness.store, harness.artifacts, harness.folder / "scratch", ended, all_stages())
    assert Situation.read(harness.store, harness.job(job_id)).done.keys() == {"validate", "baseline", "select"}
    harness.work(second)
    coordinator.round()
    assert harness.job(job_id).state is State.SUCCEEDED


def test_worker_stops_when_its_attempt_ends_during_a_stage(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    first = harness.until_submitted(coordinator, job_id)

    def end_attempt(step: int) -> None:
        if step == 2:
            job = harness.job(job_id)
            harness.store.requeue(job, "a", NonFiniteLoss("The loss is nan."), 0)
            assert harness.store.claim("b", 30) is not None

    # The worker stops without an error if its reporter is the first to notice. A checkpoint that is written between
    # the two verbs is refused because the job is queued.
    with suppress(StaleAttempt, IllegalTransition):
        run_group(
            harness.store, harness.artifacts, harness.folder / "scratch", harness.cluster.assignment(first),
            all_stages(joint=counting_stage(5, end_attempt)),
        )  # fmt: skip
    assert harness.job(job_id).attempt == 2
    assert "joint.s0" not in Situation.read(harness.store, harness.job(job_id)).done


@pytest.mark.parametrize(
    ("losses", "state", "advice"),
    [
        (0, State.QUEUED, "Resumes from step 3 when a worker is free."),
        (2, State.FAILED, "Retry the job to resume from step 3."),
    ],
)
def test_killed_worker_is_one_sentence_everywhere(
    harness: CoordinatorHarness, redis_client: redis.Redis, losses: int, state: State, advice: str
) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=1)
    submission = harness.until_submitted(coordinator, job_id)

    def kill_at_four(step: int) -> None:
        if step == 4:
            raise SystemExit(137)

    with pytest.raises(SystemExit):
        harness.work(submission, joint=counting_stage(5, kill_at_four))
    redis_client.hset(f"tlm:{{{T}}}:job:{job_id}", "losses", losses)
    harness.cluster.statuses[submission] = Status.FAILED
    coordinator.round()
    sentence = f"Worker was killed (SIGKILL, often out of memory). {advice}"
    job = harness.job(job_id)
    assert (job.state, job.error and job.error["message"]) == (state, sentence)
    assert job.error and job.error["details"] == f"{submission} ended"
    event = harness.store.events(T, job_id)[-1]
    assert (event.data["message"], "details" in event.data) == (sentence, False)
    assert harness.store.last_logs(T, job_id, 1)[0]["line"].endswith(sentence)
    listed = job_summary(job).error
    assert listed and listed["message"] == sentence and "details" not in listed


def test_internal_error_in_one_job_leaves_others_running(harness: CoordinatorHarness) -> None:
    coordinator = harness.coordinator(concurrency=2)
    bad, good = harness.submit(), harness.submit(seeds=(3,))

    def answer(job: JobRecord) -> SelectionRun | None:
        if job.id == bad:
            raise RuntimeError("bug")
        return None

    harness.selections.answer = answer
    harness.work(harness.until_submitted(coordinator, good))
    coordinator.round()
    assert harness.job(bad).state is State.FAILED
    assert harness.job(good).state is State.SUCCEEDED


def test_attempt_leaves_nothing_in_the_scratch_folder(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.work(harness.until_submitted(coordinator, job_id), joint=counting_stage(3))
    assert os.listdir(harness.folder / "scratch" / "work") == []
