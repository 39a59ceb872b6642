"""Disks that are almost full: nothing new starts before Redis, which would exit, is in danger."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import redis

from services.common.redis_client import DISK_FREE
from tests.contract.coordinator_harness import CoordinatorHarness, MovableClockStore
from tests.contract.gateway import Gateway, make_gateway, upload
from tlm_core.errors import StoreFull
from tlm_core.jobs.states import State


@pytest.fixture
def harness(redis_client: redis.Redis, tmp_path: Path) -> CoordinatorHarness:
    return CoordinatorHarness(MovableClockStore(redis_client), tmp_path)


def fill_storage(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: (100 << 30, 0, free))


def test_almost_full_disk_of_redis_refuses_and_starts_no_job(
    harness: CoordinatorHarness, redis_client: redis.Redis
) -> None:
    running, waiting = harness.submit(), harness.submit()
    coordinator = harness.coordinator(concurrency=2)
    assert harness.store.claim("a", 30) is not None
    redis_client.set(DISK_FREE, 100 << 10)
    with pytest.raises(StoreFull, match="only 100 MiB of free space"):
        harness.submit()
    coordinator.round()
    assert [harness.job(job).state for job in (running, waiting)] == [State.RUNNING, State.QUEUED]
    assert "only 100 MiB of free space" in harness.store.obstacle()
    redis_client.set(DISK_FREE, 10 << 20)
    coordinator.round()
    assert harness.store.obstacle() == ""
    assert harness.job(waiting).state is State.RUNNING


@pytest.mark.parametrize("value", ["", "-", "12 kB"])
def test_disk_free_that_is_no_number_refuses_no_job(
    gateway: Gateway, harness: CoordinatorHarness, redis_client: redis.Redis, value: str
) -> None:
    redis_client.set(DISK_FREE, value)
    job = harness.submit()
    harness.coordinator().round()
    assert harness.job(job).state is State.RUNNING
    assert "tlm_redis_disk_free_bytes" not in {figure.name for figure in gateway.parts.jobs.figures("default")}


def test_almost_full_storage_starts_no_job_but_adopts_and_stops(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopted, waiting = harness.submit(), harness.submit()
    harness.store.claim("dead", 0)
    coordinator = harness.coordinator(concurrency=2)
    fill_storage(monkeypatch, 100 << 20)
    coordinator.round()
    assert harness.job(adopted).owner == coordinator.owner
    assert harness.job(waiting).state is State.QUEUED
    harness.store.cancel("default", adopted)
    coordinator.round()
    coordinator.round()
    assert harness.job(adopted).state is State.CANCELLED


def test_almost_full_storage_refuses_uploads(
    redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = make_gateway(redis_client, tmp_path)
    with gateway.test_client() as api:
        assert upload(api).status_code == 201
        fill_storage(monkeypatch, 1 << 29)
        answer = upload(api, name="other")
        assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
        assert "Nothing is written until 1024 MiB are free." in answer.json()["detail"]
        assert "storage" in api.get("/readyz").json()["detail"]
