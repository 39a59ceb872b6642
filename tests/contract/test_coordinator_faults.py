"""The coordinator while workers, submissions, the store, and the storage fail."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

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
from tests.contract.coordinator_harness import CoordinatorHarness, MovableClockStore, T
from tests.support import files_under, wait_for
from tests.trainer_fakes import FakeSelections, all_stages, counting_stage, run_group
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import (
    CorruptArtifact,
    NonFiniteLoss,
    NotFound,
    StaleAttempt,
    StorageFull,
    StorageUnavailable,
    StoreUnavailable,
    Unavailable,
    WorkerLost,
)
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.training.stage import StageContext


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


def test_worker_without_its_storage_ends_the_attempt(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()

    def away(_: StageContext) -> NoReturn:
        raise StorageUnavailable("away")

    harness.work(harness.until_submitted(coordinator, job_id), joint=away)
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures, job.losses) == (State.QUEUED, 0, 1), "the attempt ends instead of waiting"
    assert job.error is not None and job.error["code"] == "storage_unavailable"


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


def test_job_waits_hours_for_the_hub_without_its_slot(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=2)

    def away(_: StageContext) -> NoReturn:
        raise Unavailable("Cannot fetch the model 'hub:a/b' now.")

    def fail(losses: int) -> JobRecord:
        harness.work(harness.until_submitted(coordinator, job_id), joint=away)
        harness.store._redis.hset(key(T, "job", job_id), "losses", losses)
        coordinator.round()
        return harness.job(job_id)

    def delay() -> float:
        return [e.data["delay_seconds"] for e in harness.store.events(T, job_id) if e.type == "job.requeued"][-1]

    job = fail(losses=2)
    assert (job.state, job.failures, job.losses, delay()) == (State.QUEUED, 0, 3, 240.0)
    later = harness.submit(seeds=(3,))
    harness.until_submitted(coordinator, later)
    assert harness.job(job_id).state is State.QUEUED, "the other job uses the slot"
    harness.store.cancel(T, later)
    coordinator.round()
    harness.store.expire_deadlines()
    job = fail(losses=28)
    assert (job.state, job.failures, job.losses, delay()) == (State.QUEUED, 0, 29, 600.0)
    harness.store.expire_deadlines()
    job = fail(losses=29)
    assert (job.state, job.failures, job.losses) == (State.QUEUED, 1, 0)


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


def test_three_lost_workers_without_a_checkpoint_are_one_fault(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=2)
    jobs = [lose_worker(harness, coordinator, job_id, steps=0) for _ in range(6)]
    assert [(job.failures, job.losses) for job in jobs] == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert [job.interruptions for job in jobs] == [1, 2, 2, 3, 4, 4], "each end counts once"
    assert [job.state for job in jobs] == [State.QUEUED] * 5 + [State.FAILED]


class OftenAwayStore(MovableClockStore):
    """A job store that answers reads and publications of workers at the second request only."""

    refused: frozenset[str] = frozenset()

    def _once_away(self, name: str) -> None:
        self.refused ^= {name}
        if name in self.refused:
            raise StoreUnavailable("Redis is away")

    def checkpoints(self, tenant: str, artifact: str) -> list[CheckpointRef]:
        self._once_away("checkpoints")
        return super().checkpoints(tenant, artifact)

    def artifacts(self, tenant: str, artifacts: Sequence[str]) -> list[ManifestRef | None]:
        if len(artifacts) > 1:
            self._once_away(f"artifacts {artifacts}")
        return super().artifacts(tenant, artifacts)

    def publish(self, *args: Any, **kwargs: Any) -> ManifestRef:
        self._once_away("publish")
        return super().publish(*args, **kwargs)


def test_stage_boundaries_wait_out_an_outage_of_redis(harness: CoordinatorHarness, redis_client: redis.Redis) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    reliable, harness.store = harness.store, OftenAwayStore(redis_client)
    harness.work(submission, joint=counting_stage(0))
    harness.store = reliable
    coordinator.round()
    assert (harness.job(job_id).state, harness.job(job_id).attempt) == (State.SUCCEEDED, 1)


def test_error_of_an_attempt_is_reported_once_redis_answers(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    submission, report, outages = harness.until_submitted(coordinator, job_id), harness.store.report, [1, 1]

    def away(*args: Any, events: Any = (), **options: Any) -> State:
        if outages and any(kind == "attempt.error" for kind, _ in events):
            outages.pop()
            raise StoreUnavailable("away")
        return report(*args, events=events, **options)

    def failing(_: object) -> NoReturn:
        raise NonFiniteLoss("nan")

    monkeypatch.setattr(harness.store, "report", away)
    harness.work(submission, joint=failing)
    assert "attempt.error" in harness.events(job_id)


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
    assert "another of its processes received SIGTERM, or because more workers have room" in str(job.error)
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


def test_job_waits_for_space_in_the_storage(harness: CoordinatorHarness) -> None:
    full = StorageFull("The disk of the storage has only 0 MiB of free space.")
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=1)
    harness.validate_error = full
    coordinator.round()
    coordinator.round()
    assert harness.job(job_id).state is State.RUNNING
    harness.validate_error = None
    submission = harness.until_submitted(coordinator, job_id)

    def run_out_of_space(_: StageContext) -> NoReturn:
        raise full

    harness.work(submission, prepare=run_out_of_space)
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures) == (State.QUEUED, 0), job.error
    harness.store.expire_deadlines()
    assert harness.until_ended(coordinator, job_id).state is State.SUCCEEDED


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


def test_copy_of_an_artifact_that_another_job_published_is_deleted(harness: CoordinatorHarness) -> None:
    jobs, coordinator = [harness.submit(), harness.submit()], harness.coordinator(concurrency=2)
    coordinator.round()
    assert harness.validated == 2, "it computes the task of each job, which is the same artifact"
    coordinator.round()
    (folder,) = {Situation.read(harness.store, harness.job(job)).done["validate"].folder for job in jobs}
    copies = {path.parent for path in files_under(harness.folder / "storage") if path.name == "made.json"}
    assert copies == {Path(harness.artifacts.path(folder))}


def test_recomputed_artifact_does_not_count_as_progress(harness: CoordinatorHarness, redis_client: redis.Redis) -> None:
    job_id = harness.submit()
    harness.store.claim("a", 30)
    ref = ManifestRef(folder="x", digest="1" * 64)
    for losses in (None, "2"):
        redis_client.hset(f"tlm:{{{T}}}:job:{job_id}", "losses", 2)
        harness.store.publish(T, job_id, 1, artifact="art", ref=ref, node="n", stage="s")
        assert redis_client.hget(f"tlm:{{{T}}}:job:{job_id}", "losses") == losses
        harness.store.invalidate_artifact(T, "art", ref)


def use_remote_storage(harness: CoordinatorHarness) -> None:
    """Use a storage in which only a complete read detects damage."""
    harness.artifacts = ArtifactStore(f"memory://{harness.folder.name}", harness.folder / "cache")
    harness.selections = FakeSelections(harness.artifacts, harness.folder)


def damage_task(harness: CoordinatorHarness, job_id: str, body: bytes | None = None) -> None:
    """Overwrite the file of the validated task, by default with as many bytes."""
    task = harness.artifacts.path(
        Situation.read(harness.store, harness.job(job_id)).done["validate"].folder, "made.json"
    )
    size = harness.artifacts.fs.size(task)
    harness.artifacts.fs.pipe_file(task, b"x" * size if body is None else body)


@pytest.mark.parametrize("remote", [False, True])
def test_input_damaged_after_its_check_is_computed_again(harness: CoordinatorHarness, remote: bool) -> None:
    if remote:
        use_remote_storage(harness)
    coordinator, job_id = harness.coordinator(), harness.submit()
    # Of a remote artifact, later stages read the copy that the first one made.
    first = harness.until_submitted(coordinator, job_id, "baseline" if remote else "main")
    damage_task(harness, job_id, None if remote else b"")
    harness.work(first)
    for _ in range(3):
        coordinator.round()
    assert (harness.job(job_id).state, harness.job(job_id).losses) == (State.QUEUED, 1)
    harness.store.expire_deadlines()
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (harness.job(job_id).state, harness.validated) == (State.SUCCEEDED, 2)


def test_artifact_unpublished_between_two_stages_interrupts_the_attempt(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=1)
    submission = harness.until_submitted(coordinator, job_id)
    situation = Situation.read(harness.store, harness.job(job_id))
    task = situation.artifact_id(situation.plan.node("validate"))
    harness.work(submission, joint=counting_stage(1, lambda _: harness.store.invalidate_artifact(T, task)))
    for _ in range(4):
        coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures, job.losses) == (State.QUEUED, 0, 1), job.error
    assert job.error is not None and "the artifact of 'validate' is no longer published" in str(job.error["message"])
    harness.store.expire_deadlines()
    assert harness.until_ended(coordinator, job_id).state is State.SUCCEEDED
    assert harness.validated == 2


def test_task_that_the_retriever_reports_as_damaged_is_computed_again(harness: CoordinatorHarness) -> None:
    use_remote_storage(harness)

    def retriever(job: JobRecord) -> SelectionRun | None:
        if harness.validated > 1:
            return None
        damage_task(harness, job.id)
        return SelectionRun(state="failed", error=CorruptArtifact("made.json does not match its manifest").as_dict())

    harness.selections.answer = retriever
    coordinator, job_id = harness.coordinator(), harness.submit()
    for _ in range(3):
        coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.losses, job.error and job.error["code"]) == (State.QUEUED, 1, "storage_unavailable")
    assert harness.selections.stopped, "a stopped selection forgets its failure"
    harness.store.expire_deadlines()
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (harness.job(job_id).state, harness.validated) == (State.SUCCEEDED, 2)


def test_task_that_is_lost_during_the_selection_is_computed_again(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.selections.answer = lambda _: SelectionRun(state="running", done=1, total=2)
    harness.until_submitted(coordinator, job_id, "baseline")
    task = Situation.read(harness.store, harness.job(job_id)).done["validate"]
    shutil.rmtree(harness.artifacts.path(task.folder))
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures, job.losses) == (State.QUEUED, 0, 1), job.error
    harness.selections.answer = lambda _: None
    harness.store.expire_deadlines()
    assert harness.until_ended(coordinator, job_id).state is State.SUCCEEDED


def test_report_that_is_lost_before_the_end_is_computed_again(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.work(harness.until_submitted(coordinator, job_id))
    situation = Situation.read(harness.store, harness.job(job_id))
    report, check = situation.done[situation.plan.report], harness.artifacts.check

    def lose_after_check(ref: ManifestRef) -> None:
        check(ref)
        if ref == report:
            shutil.rmtree(harness.artifacts.path(ref.folder))

    harness.artifacts.check = lose_after_check  # type: ignore[method-assign]
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures, job.losses) == (State.QUEUED, 0, 1), job.error
    harness.store.expire_deadlines()
    assert harness.until_ended(coordinator, job_id).state is State.SUCCEEDED


def test_retriever_error_without_a_damaged_input_fails_the_job(harness: CoordinatorHarness) -> None:
    harness.selections.answer = lambda _: SelectionRun(state="failed", error=NotFound("the corpus is gone").as_dict())
    coordinator, job_id = harness.coordinator(), harness.submit()
    for _ in range(4):
        coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.error and job.error["code"], harness.validated) == (State.FAILED, "not_found", 1)


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

    with suppress(StaleAttempt):  # the worker stops without an error if its reporter is the first to notice
        run_group(
            harness.store, harness.artifacts, harness.folder / "scratch", harness.cluster.assignment(first),
            all_stages(joint=counting_stage(5, end_attempt)),
        )  # fmt: skip
    assert harness.job(job_id).attempt == 2
    assert "joint.s0" not in Situation.read(harness.store, harness.job(job_id)).done


def test_damaged_checkpoint_is_skipped_for_the_previous_one(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()

    def die_at_four(step: int) -> None:
        if step == 4:
            raise RuntimeError("killed")

    harness.work(harness.until_submitted(coordinator, job_id), joint=counting_stage(5, die_at_four))
    job = harness.job(job_id)
    done = {name: ref.digest for name, ref in Situation.read(harness.store, job).done.items()}
    artifact = plan_of(job).node("joint.s0").artifact_id(done, job.id)
    newest = harness.store.checkpoints(T, artifact)[-1]
    Path(harness.artifacts.path(newest.ref.folder, "step")).write_text("9")
    coordinator.round()
    harness.store.expire_deadlines()
    harness.work(harness.until_submitted(coordinator, job_id), joint=counting_stage(5))
    starts = [e.data["step"] for e in harness.store.events(T, job_id) if e.type == "stage.started_at"]
    assert starts == [0, newest.step - 1]


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


def test_full_redis_stops_neither_the_coordinator_nor_its_workers(
    harness: CoordinatorHarness, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator, job_id = harness.coordinator(poll_seconds=0.05), harness.submit()
    submission = harness.until_working(coordinator, job_id)
    stop = threading.Event()
    runner = threading.Thread(target=coordinator.run, args=(stop,))
    harness.rounds_until(coordinator, 40)
    redis_client.config_set("maxmemory", 1)
    try:
        runner.start()
        wait_for(lambda: "Background task 'rounds' waits: Redis has no memory left" in caplog.text)
        harness.store.ahead = 50  # longer than the allowed silence
        began = coordinator._stepped_at
        wait_for(lambda: coordinator._stepped_at > began)
    finally:
        redis_client.config_set("maxmemory", 0)
        lease = harness.job(job_id).lease_until
        wait_for(lambda: harness.job(job_id).lease_until != lease)  # A round has succeeded again.
        stop.set()
        runner.join(20)
    assert (harness.job(job_id).state, harness.cluster.stopped) == (State.RUNNING, [])
    harness.rounds_until(coordinator, 110)
    assert harness.cluster.stopped == [submission], "the grace period is over"


class BrieflyFullStore(MovableClockStore):
    """A job store whose Redis has no memory during one report."""

    full = True

    def report(self, *args: Any, **kwargs: Any) -> State:
        if not self.full:
            return super().report(*args, **kwargs)
        self.full = False
        self._redis.config_set("maxmemory", 1)
        try:
            return super().report(*args, **kwargs)
        finally:
            self._redis.config_set("maxmemory", 0)


def test_briefly_full_redis_fails_no_job(harness: CoordinatorHarness, redis_client: redis.Redis) -> None:
    harness.store = BrieflyFullStore(redis_client)
    coordinator, job_id = harness.coordinator(), harness.submit()
    coordinator.round()
    assert (harness.job(job_id).state, harness.job(job_id).failures) == (State.RUNNING, 0)
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    assert harness.job(job_id).state is State.SUCCEEDED


def test_jobs_wait_for_an_unmounted_storage_and_lose_no_artifact(harness: CoordinatorHarness) -> None:
    job_id, other = harness.submit(), harness.submit(seeds=(3,))
    submission = harness.until_submitted(harness.coordinator(), job_id)
    storage, away = harness.folder / "storage", harness.folder / "away"
    storage.rename(away)
    harness.store.expire_deadlines()
    coordinator = harness.coordinator("b", concurrency=2)
    coordinator.round()
    coordinator.round()
    assert [harness.events(waiting)[-1] for waiting in (job_id, other)] == ["job.waiting"] * 2
    assert not storage.exists(), "files written there would be hidden by the mount"
    away.rename(storage)
    harness.work(submission)
    coordinator.round()
    assert (harness.job(job_id).state, harness.validated) == (State.SUCCEEDED, 1)


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
