"""The coordinator while workers, other coordinators, submissions, and the store fail."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis

from services.common.redis_client import connect
from services.common.situation import Situation
from services.trainer.cluster import Status
from services.trainer.selections import SelectionState
from tests.contract.coordinator_world import MovableClockStore, T, World
from tests.support import wait_for
from tests.trainer_fakes import FakeSelections, all_stages, counting_stage, run_group
from tlm_core.artifacts import ArtifactStore
from tlm_core.errors import CorruptArtifact, NonFiniteLoss, NotFound, StaleAttempt, StorageUnavailable, UnreadableRecord
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.training.stage import StageContext


def test_next_attempt_continues_from_the_checkpoint_of_a_killed_worker(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()

    def die_at_three(step: int) -> None:
        if step == 3:
            raise RuntimeError("killed")

    first = world.until_submitted(coordinator, job_id)
    world.work(first, joint=counting_stage(5, die_at_three))
    coordinator.round()
    assert (world.job(job_id).state, world.job(job_id).failures) == (State.QUEUED, 1)
    world.store.expire_deadlines()
    second = world.until_submitted(coordinator, job_id)
    assert second != first
    world.work(second, joint=counting_stage(5))
    coordinator.round()
    assert world.job(job_id).state is State.SUCCEEDED
    starts = [e.data["step"] for e in world.store.events(T, job_id) if e.type == "stage.started_at"]
    assert starts == [0, 2]


def test_worker_without_its_storage_ends_the_attempt(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()

    def away(_: StageContext) -> NoReturn:
        raise StorageUnavailable("away")

    world.work(world.until_submitted(coordinator, job_id), joint=away)
    coordinator.round()
    job = world.job(job_id)
    assert (job.state, job.failures) == (State.QUEUED, 1), "the attempt ends instead of waiting"
    assert job.error is not None and job.error["code"] == "storage_unavailable"


def use_remote_storage(world: World) -> None:
    """Use a storage in which only a complete read detects damage."""
    world.artifacts = ArtifactStore(f"memory://{world.folder.name}", world.folder / "cache")
    world.selections = FakeSelections(world.artifacts, world.folder)


def damage_task(world: World, job_id: str, body: bytes | None = None) -> None:
    """Overwrite the file of the validated task, by default with as many bytes."""
    task = world.artifacts.path(Situation.read(world.store, world.job(job_id)).done["validate"].folder, "made.json")
    size = world.artifacts.fs.size(task)
    world.artifacts.fs.pipe_file(task, b"x" * size if body is None else body)


@pytest.mark.parametrize("remote", [False, True])
def test_input_damaged_after_its_check_is_computed_again(world: World, remote: bool) -> None:
    if remote:
        use_remote_storage(world)
    coordinator, job_id = world.coordinator(), world.submit()
    first = world.until_submitted(coordinator, job_id)
    damage_task(world, job_id, None if remote else b"")
    world.work(first)
    for _ in range(3):
        coordinator.round()
    assert (world.job(job_id).state, world.job(job_id).failures) == (State.QUEUED, 1)
    world.store.expire_deadlines()
    world.work(world.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (world.job(job_id).state, world.validated) == (State.SUCCEEDED, 2)


def test_task_that_the_retriever_reports_as_damaged_is_computed_again(world: World) -> None:
    use_remote_storage(world)

    def retriever(job: JobRecord) -> SelectionState | None:
        if world.validated > 1:
            return None
        damage_task(world, job.id)
        return SelectionState(error=CorruptArtifact("made.json does not match its manifest"))

    world.selections.answer = retriever
    coordinator, job_id = world.coordinator(), world.submit()
    for _ in range(3):
        coordinator.round()
    job = world.job(job_id)
    assert (job.state, job.failures, job.error and job.error["code"]) == (State.QUEUED, 1, "storage_unavailable")
    assert world.selections.stopped, "a stopped selection forgets its failure"
    world.store.expire_deadlines()
    world.work(world.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (world.job(job_id).state, world.validated) == (State.SUCCEEDED, 2)


def test_retriever_error_without_a_damaged_input_fails_the_job(world: World) -> None:
    world.selections.answer = lambda _: SelectionState(error=NotFound("the corpus is gone"))
    coordinator, job_id = world.coordinator(), world.submit()
    for _ in range(4):
        coordinator.round()
    job = world.job(job_id)
    assert (job.state, job.error and job.error["code"], world.validated) == (State.FAILED, "not_found", 1)


def test_coordinator_continues_the_jobs_of_a_killed_one(world: World) -> None:
    job_id = world.submit()
    for n in range(12):
        coordinator = world.coordinator(f"c{n}")  # It is killed after two rounds, and its lease expires.
        coordinator.round()
        coordinator.round()
        if world.job(job_id).state is State.SUCCEEDED:
            break
        for submission, status in list(world.cluster.statuses.items()):
            if status is Status.RUNNING:
                world.work(submission)
        world.store.expire_deadlines()
    assert world.job(job_id).state is State.SUCCEEDED
    assert world.job(job_id).attempt == 1, "an adoption keeps the attempt"
    assert len(world.cluster.commands) == 1, "nothing starts twice"


def test_lost_submission_is_replaced_by_a_new_attempt(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    lost = world.until_submitted(coordinator, job_id)
    world.cluster.commands.clear()
    world.cluster.statuses.clear()
    coordinator.round()
    assert world.job(job_id).state is State.QUEUED
    world.store.expire_deadlines()
    assert world.until_submitted(coordinator, job_id) != lost


def test_worker_of_an_ended_attempt_publishes_nothing(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    first = world.until_submitted(coordinator, job_id)
    ended = world.cluster.assignment(first)
    world.store.report(T, job_id, 1, logs=["started"])
    world.rounds_until(coordinator, 301)
    world.store.ahead = 0
    world.store.expire_deadlines()
    second = world.until_submitted(coordinator, job_id)
    with pytest.raises(StaleAttempt):
        run_group(world.store, world.artifacts, world.folder / "scratch", ended, all_stages())
    assert Situation.read(world.store, world.job(job_id)).done.keys() == {"validate", "select"}
    world.work(second)
    coordinator.round()
    assert world.job(job_id).state is State.SUCCEEDED


def test_worker_stops_when_its_attempt_ends_during_a_stage(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    first = world.until_submitted(coordinator, job_id)

    def end_attempt(step: int) -> None:
        if step == 2:
            job = world.job(job_id)
            world.store.requeue(job, "a", NonFiniteLoss("The loss is nan."), 0)
            assert world.store.claim("b", 30) is not None

    with pytest.raises(StaleAttempt):
        run_group(
            world.store, world.artifacts, world.folder / "scratch", world.cluster.assignment(first),
            all_stages(joint=counting_stage(5, end_attempt)),
        )  # fmt: skip
    assert "joint.s0" not in Situation.read(world.store, world.job(job_id)).done


def test_damaged_checkpoint_is_skipped_for_the_previous_one(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()

    def die_at_four(step: int) -> None:
        if step == 4:
            raise RuntimeError("killed")

    world.work(world.until_submitted(coordinator, job_id), joint=counting_stage(5, die_at_four))
    job = world.job(job_id)
    done = {name: ref.digest for name, ref in Situation.read(world.store, job).done.items()}
    artifact = plan_of(job).node("joint.s0").artifact_id(done, job.id)
    newest = world.store.checkpoints(T, artifact)[-1]
    Path(world.artifacts.path(newest.ref.folder, "step")).write_text("9")
    coordinator.round()
    world.store.expire_deadlines()
    world.work(world.until_submitted(coordinator, job_id), joint=counting_stage(5))
    starts = [e.data["step"] for e in world.store.events(T, job_id) if e.type == "stage.started_at"]
    assert starts == [0, newest.step - 1]


@pytest.mark.parametrize("away", [False, True])
def test_every_round_touches_the_heartbeat_file(world: World, tmp_path: Path, away: bool) -> None:
    if away:
        world.store = MovableClockStore(connect("redis://127.0.0.1:1/0"))
    stop, heartbeat = threading.Event(), tmp_path / "scratch" / "heartbeat"
    runner = threading.Thread(target=world.coordinator(poll_seconds=0.05).run, args=(stop,))
    runner.start()
    try:
        wait_for(heartbeat.exists)
        os.utime(heartbeat, (0, 0))
        wait_for(lambda: heartbeat.stat().st_mtime > 0)
    finally:
        stop.set()
        runner.join(20)
    assert not runner.is_alive()


def test_full_redis_stops_neither_the_coordinator_nor_its_workers(
    world: World, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator, job_id = world.coordinator(poll_seconds=0.05), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.store.report(T, job_id, 1, logs=["started"])
    stop = threading.Event()
    runner = threading.Thread(target=coordinator.run, args=(stop,))
    world.rounds_until(coordinator, 290)
    redis_client.config_set("maxmemory", 1)
    try:
        runner.start()
        wait_for(lambda: "Waiting for the job store: Redis has no memory left" in caplog.text)
        world.store.ahead = 310  # longer than the allowed silence
        caplog.clear()
        wait_for(lambda: "Waiting for the job store: Redis has no memory left" in caplog.text)
    finally:
        redis_client.config_set("maxmemory", 0)
        lease = world.job(job_id).lease_until
        wait_for(lambda: world.job(job_id).lease_until != lease)  # A round has succeeded again.
        stop.set()
        runner.join(20)
    assert (world.job(job_id).state, world.cluster.stopped) == (State.RUNNING, [])
    world.rounds_until(coordinator, 621)
    assert world.cluster.stopped == [submission], "the grace period is over"


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


def test_briefly_full_redis_fails_no_job(world: World, redis_client: redis.Redis) -> None:
    world.store = BrieflyFullStore(redis_client)
    coordinator, job_id = world.coordinator(), world.submit()
    coordinator.round()
    assert (world.job(job_id).state, world.job(job_id).failures) == (State.RUNNING, 0)
    world.work(world.until_submitted(coordinator, job_id))
    coordinator.round()
    assert world.job(job_id).state is State.SUCCEEDED


def test_jobs_wait_for_an_unmounted_storage_and_lose_no_artifact(world: World) -> None:
    job_id, other = world.submit(), world.submit(seeds=(3,))
    submission = world.until_submitted(world.coordinator(), job_id)
    storage, away = world.folder / "storage", world.folder / "away"
    storage.rename(away)
    world.store.expire_deadlines()
    coordinator = world.coordinator("b", concurrency=2)
    coordinator.round()
    coordinator.round()
    assert [world.events(waiting)[-1] for waiting in (job_id, other)] == ["job.waiting"] * 2
    assert not storage.exists(), "files written there would be hidden by the mount"
    away.rename(storage)
    world.work(submission)
    coordinator.round()
    assert (world.job(job_id).state, world.validated) == (State.SUCCEEDED, 1)


def test_internal_error_in_one_job_leaves_others_running(world: World) -> None:
    coordinator = world.coordinator(concurrency=2)
    bad, good = world.submit(), world.submit(seeds=(3,))

    def answer(job: JobRecord) -> SelectionState | None:
        if job.id == bad:
            raise RuntimeError("bug")
        return None

    world.selections.answer = answer
    world.work(world.until_submitted(coordinator, good))
    coordinator.round()
    assert world.job(bad).state is State.FAILED
    assert world.job(good).state is State.SUCCEEDED


def test_attempt_leaves_nothing_in_the_scratch_folder(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    world.work(world.until_submitted(coordinator, job_id), joint=counting_stage(3))
    assert os.listdir(world.folder / "scratch" / "work") == []


def test_job_with_a_record_of_another_release_is_released(world: World, redis_client: redis.Redis) -> None:
    coordinator, unreadable = world.coordinator(), world.submit()
    coordinator.round()
    redis_client.hset(f"tlm:{{{T}}}:job:{unreadable}", "resolved", '{"of_tomorrow": 1}')
    coordinator.round()
    assert world.until_submitted(coordinator, world.submit())


def test_job_of_another_release_does_not_block_others(world: World, redis_client: redis.Redis) -> None:
    unreadable = world.submit()
    key = f"tlm:{{{T}}}:job:{unreadable}"
    known = redis_client.hget(key, "resolved")
    newer = {**json.loads(known), "recipe": {**json.loads(known)["recipe"], "of_tomorrow": 1}}
    redis_client.hset(key, "resolved", json.dumps(newer))
    ours = world.submit()
    coordinator = world.coordinator()
    coordinator.round()
    with pytest.raises(UnreadableRecord, match=rf"{unreadable}.*of_tomorrow"):
        world.job(unreadable)
    assert world.until_submitted(coordinator, ours)
    redis_client.hset(key, "resolved", known)  # a coordinator of the other release reads this record
    world.store.expire_deadlines()
    assert world.until_submitted(world.coordinator("b", concurrency=4), unreadable)
