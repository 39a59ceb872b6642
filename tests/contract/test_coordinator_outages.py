"""The coordinator and its workers while Redis or the storage is away or full."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest
import redis

from services.common.jobstore import CheckpointRef
from services.common.redis_client import key
from tests.contract.coordinator_harness import CoordinatorHarness, MovableClockStore, T
from tests.support import wait_for
from tests.trainer_fakes import counting_stage
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import (
    NonFiniteLoss,
    StorageFull,
    StorageUnavailable,
    StoreUnavailable,
    TLMError,
    Unavailable,
    WorkerLost,
)
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.training.stage import StageContext


def test_worker_without_its_storage_ends_the_attempt(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()

    def away(_: StageContext) -> NoReturn:
        raise StorageUnavailable("away")

    harness.work(harness.until_submitted(coordinator, job_id), joint=away)
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures, job.losses) == (State.QUEUED, 0, 1), "the attempt ends instead of waiting"
    assert job.error is not None and job.error["code"] == "storage_unavailable"


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


def test_job_waits_hours_for_the_hub_without_its_slot(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=2)

    def away(_: StageContext) -> NoReturn:
        raise Unavailable("Cannot fetch the model 'hub:a/b' now.")

    def fail(hub_losses: int) -> JobRecord:
        harness.work(harness.until_submitted(coordinator, job_id), joint=away)
        harness.store._redis.hset(key(T, "job", job_id), "hub_losses", hub_losses)
        coordinator.round()
        return harness.job(job_id)

    def delay() -> float:
        return [e.data["delay_seconds"] for e in harness.store.events(T, job_id) if e.type == "job.requeued"][-1]

    job = fail(hub_losses=2)
    assert (job.state, job.failures, job.hub_losses, delay()) == (State.QUEUED, 0, 3, 240.0)
    later = harness.submit(seeds=(3,))
    harness.until_submitted(coordinator, later)
    assert harness.job(job_id).state is State.QUEUED, "the other job uses the slot"
    harness.store.cancel(T, later)
    coordinator.round()
    harness.store.expire_deadlines()
    job = fail(hub_losses=28)
    assert (job.state, job.failures, job.hub_losses, delay()) == (State.QUEUED, 0, 29, 600.0)
    harness.store.expire_deadlines()
    job = fail(hub_losses=29)
    assert (job.state, job.failures, job.hub_losses) == (State.QUEUED, 1, 0)


def test_lost_workers_between_outages_of_the_hub_count(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=1)

    def fail(error: TLMError) -> tuple[State, int, int, int]:
        def stop(_: StageContext) -> NoReturn:
            raise error

        harness.work(harness.until_submitted(coordinator, job_id), joint=stop)
        coordinator.round()
        harness.store.expire_deadlines()
        job = harness.job(job_id)
        return job.state, job.failures, job.losses, job.hub_losses

    lost, away = WorkerLost("A worker died."), Unavailable("Cannot fetch the model 'hub:a/b' now.")
    assert [fail(away)[2:] for _ in range(3)] == [(0, 1), (0, 2), (0, 3)]
    assert [fail(error) for error in (lost, away, lost)][-1] == (State.QUEUED, 0, 2, 4)
    assert fail(lost) == (State.FAILED, 1, 0, 0), "three losses without progress are one failure"


@pytest.mark.parametrize("error", [WorkerLost("A worker died."), Unavailable("Cannot fetch the model 'hub:a/b' now.")])
def test_outages_of_the_hub_that_an_earlier_state_counted_are_no_failure(
    harness: CoordinatorHarness, error: TLMError
) -> None:
    job = harness.job(harness.submit()).model_copy(update={"losses": 10})
    assert job.spent(error)[0] == 0
