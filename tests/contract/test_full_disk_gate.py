"""Disks that are almost full: nothing new starts before Redis, which would exit, is in danger."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from fastapi.testclient import TestClient

from services.common.redis_client import DISK_FREE
from tests.contract.coordinator_harness import CoordinatorHarness, MovableClockStore
from tests.contract.gateway import AUTH, Gateway, make_gateway, upload, upload_in_one_part
from tlm_core.errors import StoreFull
from tlm_core.jobs.states import State


@pytest.fixture
def harness(redis_client: redis.Redis, tmp_path: Path) -> CoordinatorHarness:
    return CoordinatorHarness(MovableClockStore(redis_client), tmp_path)


@pytest.fixture
def api(gateway: Gateway) -> Iterator[TestClient]:
    with gateway.test_client() as client:
        yield client


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


def test_upload_that_would_fill_the_storage_is_refused_before_it_is_read(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = upload_in_one_part(api, "train.csv", b"text,label")
    fill_storage(monkeypatch, 3 << 30)
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(5 << 29)}
    answers = [
        api.post("/v1/datasets", headers=headers, content=b"never parsed"),
        api.post("/v1/uploads", json={"name": "train.csv", "size": 5 << 29}),
    ]
    assert api.post("/v1/uploads", json={"name": "train.csv", "size": 3 << 29}).status_code == 201
    fill_storage(monkeypatch, 1 << 30)
    answers.append(api.post("/v1/datasets/from-uploads", json={"name": "toy", "files": {"train": upload_id}}))
    assert [answer.json()["code"] for answer in answers] == ["storage_full"] * 3
    assert "An upload of 2560 MiB is refused until 3584 MiB are free." in answers[0].json()["detail"]


def test_almost_full_disk_of_redis_refuses_bodies_before_they_are_read(
    api: TestClient, redis_client: redis.Redis
) -> None:
    upload_id = api.post("/v1/uploads", json={"name": "train.csv", "size": 9}).json()["id"]
    redis_client.set(DISK_FREE, 100 << 10)
    headers = {"Content-Type": "application/octet-stream", "Content-Range": "bytes 0-8/9"}
    part = api.put(f"/v1/uploads/{upload_id}", content=b"text,labe", headers=headers)
    whole = upload(api, train="no table")
    assert [(answer.status_code, answer.json()["code"]) for answer in (part, whole)] == [(507, "store_full")] * 2
    redis_client.set(DISK_FREE, 10 << 20)
    assert api.put(f"/v1/uploads/{upload_id}", content=b"text,labe", headers=headers).json()["offset"] == 9


def test_disk_that_fills_while_a_body_arrives_refuses_the_rest(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def check_space(size: int) -> None:
        sizes.append(size)
        if len(sizes) == 3:
            raise StoreFull("full")

    monkeypatch.setattr(gateway.parts.uploads, "check_space", check_space)
    monkeypatch.setattr("services.api.forms._CHECKED_BYTES", 1000)
    with gateway.served() as url, httpx.Client(base_url=url, headers=AUTH, trust_env=False) as client:
        answer = upload(client, train="x" * 1_000_000)
    assert (answer.status_code, len(sizes)) == (507, 3)
    assert sizes[0] > 1_000_000 > sizes[1] > sizes[2]
