"""The coordinator while workers, coordinators, submissions and the store itself fail under it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis

from services.common.jobstore import JobStore
from services.common.redis_client import connect
from services.common.situation import Situation
from services.trainer.cluster import Status
from services.trainer.selections import SelectionState
from tests.contract.coordinator_world import AheadStore, T, World
from tests.trainer_fakes import FakeSelections, all_stages, counting_stage, run_group
from tlm_core.artifacts import ArtifactStore
from tlm_core.errors import CorruptArtifact, NonFiniteLoss, NotFound, StaleAttempt, StorageUnavailable, UnreadableRecord
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.training.stage import StageContext


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


def test_a_worker_that_an_absent_component_ended_is_followed_by_another_attempt(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()

    def away(_: StageContext) -> NoReturn:
        raise StorageUnavailable("away")

    world.work(world.until_submitted(coordinator, job_id), joint=away)
    coordinator.round()
    job = world.job(job_id)
    assert (job.state, job.failures) == (State.QUEUED, 1), "nothing is left to wait for"
    assert job.error is not None and job.error["code"] == "storage_unavailable"


def use_remote_storage(world: World) -> None:
    """One in which only a whole read finds damage."""
    world.artifacts = ArtifactStore(f"memory://{world.folder.name}", world.folder / "cache")
    world.selections = FakeSelections(world.artifacts, world.folder)


def damage_task(world: World, job_id: str, body: bytes | None = None) -> None:
    """Write other bytes, by default as many, into the file of the validated task."""
    task = world.artifacts.path(Situation.read(world.store, world.job(job_id)).done["validate"].folder, "made.json")
    size = world.artifacts.fs.size(task)
    world.artifacts.fs.pipe_file(task, b"x" * size if body is None else body)


@pytest.mark.parametrize("remote", [False, True])
def test_an_input_damaged_after_the_coordinators_look_is_made_again(world: World, remote: bool) -> None:
    if remote:
        use_remote_storage(world)
    coordinator, job_id = world.coordinator(), world.submit()
    first = world.until_submitted(coordinator, job_id)
    damage_task(world, job_id, None if remote else b"")
    world.work(first)
    for _ in range(3):
        coordinator.round()
    assert (world.job(job_id).state, world.job(job_id).failures) == (State.QUEUED, 1)
    time.sleep(1.1)
    world.work(world.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (world.job(job_id).state, world.validated) == (State.SUCCEEDED, 2)


def test_a_task_that_the_retriever_finds_damaged_is_made_again(world: World) -> None:
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
    assert world.selections.stopped, "the retriever forgets a failure that is stopped"
    time.sleep(1.1)
    world.work(world.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (world.job(job_id).state, world.validated) == (State.SUCCEEDED, 2)


def test_an_error_of_the_retriever_that_no_input_explains_fails_the_job(world: World) -> None:
    world.selections.answer = lambda _: SelectionState(error=NotFound("the corpus is gone"))
    coordinator, job_id = world.coordinator(), world.submit()
    for _ in range(4):
        coordinator.round()
    job = world.job(job_id)
    assert (job.state, job.error and job.error["code"], world.validated) == (State.FAILED, "not_found", 1)


def test_any_coordinator_goes_on_where_another_was_killed(world: World) -> None:
    job_id = world.submit()
    for n in range(12):
        coordinator = world.coordinator(f"c{n}")  # a few rounds each, then it is gone and its lease runs out
        coordinator.round()
        coordinator.round()
        if world.job(job_id).state is State.SUCCEEDED:
            break
        for submission, status in list(world.cluster.statuses.items()):
            if status is Status.RUNNING:
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


def test_a_zombie_can_finish_its_work_but_publishes_nothing(world: World) -> None:
    coordinator, job_id = world.coordinator(), world.submit()
    first = world.until_submitted(coordinator, job_id)
    zombie = world.cluster.assignment(first)
    world.store.report(T, job_id, 1, logs=["a worker has begun"])
    world.rounds_until(coordinator, 301)
    world.store.ahead = 0
    time.sleep(1.1)
    second = world.until_submitted(coordinator, job_id)
    with pytest.raises(StaleAttempt):
        run_group(world.store, world.artifacts, world.folder / "scratch", zombie, all_stages())
    assert Situation.read(world.store, world.job(job_id)).done.keys() == {"validate", "select"}
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
    assert "joint.s0" not in Situation.read(world.store, world.job(job_id)).done


def test_a_broken_checkpoint_is_passed_over_for_the_one_before(world: World) -> None:
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
    time.sleep(1.1)
    world.work(world.until_submitted(coordinator, job_id), joint=counting_stage(5))
    starts = [e.data["step"] for e in world.store.events(T, job_id) if e.type == "stage.started_at"]
    assert starts == [0, newest.step - 1]


@pytest.mark.parametrize("away", [False, True])
def test_every_round_gives_a_sign_of_life_even_while_the_store_is_away(
    world: World, tmp_path: Path, away: bool
) -> None:
    if away:
        world.store = AheadStore(connect("redis://127.0.0.1:1/0"))
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


def test_a_full_redis_ends_neither_the_coordinator_nor_a_worker_that_it_silenced(
    world: World, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator, job_id = world.coordinator(poll_seconds=0.05), world.submit()
    submission = world.until_submitted(coordinator, job_id)
    world.store.report(T, job_id, 1, logs=["a worker has begun"])
    stop = threading.Event()
    runner = threading.Thread(target=coordinator.run, args=(stop,))
    world.rounds_until(coordinator, 290)
    redis_client.config_set("maxmemory", 1)
    try:
        runner.start()
        _wait_for(lambda: "Waiting for the job store: Redis has no memory left" in caplog.text)
        world.store.ahead = 310  # longer than a worker may be silent
        caplog.clear()
        _wait_for(lambda: "Waiting for the job store: Redis has no memory left" in caplog.text)
    finally:
        redis_client.config_set("maxmemory", 0)
        time.sleep(0.2)
        stop.set()
        runner.join(20)
    assert (world.job(job_id).state, world.cluster.stopped) == (State.RUNNING, [])
    world.rounds_until(coordinator, 621)
    assert world.cluster.stopped == [submission], "from then on it counts"


class HoveringStore(JobStore):
    """Its Redis has no memory for one report, and then has some again."""

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


def test_a_redis_that_is_full_for_a_moment_fails_no_job(world: World, redis_client: redis.Redis) -> None:
    world.store = HoveringStore(redis_client)
    coordinator, job_id = world.coordinator(), world.submit()
    coordinator.round()
    assert (world.job(job_id).state, world.job(job_id).failures) == (State.RUNNING, 0)
    world.work(world.until_submitted(coordinator, job_id))
    coordinator.round()
    assert world.job(job_id).state is State.SUCCEEDED


def _wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_storage_that_is_not_mounted_takes_nothing_back_and_jobs_wait_for_it(world: World) -> None:
    job_id, other = world.submit(), world.submit(seeds=(3,))
    submission = world.until_submitted(world.coordinator(), job_id)
    storage, away = world.folder / "storage", world.folder / "away"
    storage.rename(away)
    time.sleep(0.25)  # the lease runs out
    coordinator = world.coordinator("b", concurrency=2)
    coordinator.round()
    coordinator.round()
    assert [world.events(one)[-1] for one in (job_id, other)] == ["job.waiting"] * 2
    assert not storage.exists(), "what is written there would be hidden when it comes back"
    away.rename(storage)
    world.work(submission)
    coordinator.round()
    assert (world.job(job_id).state, world.validated) == (State.SUCCEEDED, 1)


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


def test_a_job_that_another_release_takes_over_while_it_is_held_is_let_go(
    world: World, redis_client: redis.Redis
) -> None:
    coordinator, strange = world.coordinator(), world.submit()
    coordinator.round()
    redis_client.hset(f"tlm:{{{T}}}:job:{strange}", "resolved", '{"of_tomorrow": 1}')
    coordinator.round()
    assert world.until_submitted(coordinator, world.submit())


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
