"""Uploads in parts: the gateway receives every byte once, whatever is lost."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.client.gateway import client_of, dataset_view, problem
from tlm_core.errors import InvalidDataset, InvalidRequest, StorageFull, Unavailable

CONTENT = bytes(range(256)) * 300


class PartServer:
    """Accepts parts of at most 10,000 bytes. losses: per part, whether the request or the answer is lost."""

    def __init__(self, losses: list[str | None] | None = None) -> None:
        self.losses = losses or []
        self.received, self.announced = b"", ""
        self.dataset: Any = None
        self.rejects = self.loses_dataset = False
        self.deleted = 0

    def view(self) -> dict[str, Any]:
        return {
            "id": "upl_1", "name": "train.csv", "size": len(CONTENT), "sha256": self.announced,
            "offset": len(self.received), "part_bytes": 10_000, "expires_seconds": 60,
        }  # fmt: skip

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and request.url.path == "/v1/uploads":
            self.announced = json.loads(request.content)["sha256"]
            return httpx.Response(201, json=self.view())
        if request.method == "DELETE":
            self.deleted += 1
            return httpx.Response(204)
        if request.method == "GET":
            return httpx.Response(200, json=self.view())
        if request.method == "PUT":
            return self.part(request)
        lost, self.dataset = self.dataset is None and self.loses_dataset, json.loads(request.content)
        if lost:
            raise httpx.ReadError("the connection broke")
        if self.rejects:
            return problem(422, "invalid_dataset", "bad", errors=[{"code": "null_text", "message": "x", "row": 1}])
        return httpx.Response(201, json=dataset_view())

    def part(self, request: httpx.Request) -> httpx.Response:
        lost = self.losses.pop(0) if self.losses else None
        if lost == "request":
            raise httpx.WriteError("the connection broke")
        first = int(request.headers["Content-Range"].removeprefix("bytes ").split("-")[0])
        if first != len(self.received):
            return problem(409, "conflict", "wrong offset", facts={"offset": len(self.received)})
        self.received += request.content
        if lost == "answer":
            raise httpx.ReadError("the connection broke")
        return httpx.Response(200, json=self.view())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.csv"
    path.write_bytes(CONTENT)
    return path


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(losses=st.lists(st.sampled_from(["request", "answer", None]), max_size=10))
def test_every_byte_arrives_once_after_losses(file: Path, losses: list[str | None]) -> None:
    server = PartServer([*losses[:5], None, *losses[5:]])  # Six failures in a row end an upload.
    with client_of(server) as client:
        client.add_dataset("toy", {"train": file}, in_parts_from=1)
    assert server.received == CONTENT
    assert server.announced == hashlib.sha256(CONTENT).hexdigest()
    assert server.dataset == {"name": "toy", "options": {}, "files": {"train": "upl_1"}}


def test_upload_fails_after_a_long_outage(file: Path) -> None:
    server = PartServer()

    def unavailable(request: httpx.Request) -> httpx.Response:
        return problem(503, "unavailable", "down") if request.method == "PUT" else server(request)

    message = r"Repeat the upload of train\.csv later"
    with client_of(unavailable, tries=1) as client, pytest.raises(Unavailable, match=message):
        client.add_dataset("toy", {"train": file}, in_parts_from=1)


def test_file_that_shrinks_during_the_upload_is_an_error(file: Path) -> None:
    server, methods = PartServer(), []

    def shrinks(request: httpx.Request) -> httpx.Response:
        methods.append(request.method)
        assert len(methods) < 10, "The client repeats requests without an end."
        if len(server.received) == 20_000:
            file.write_bytes(CONTENT[:20_000])
        return server(request)

    with client_of(shrinks) as client, pytest.raises(InvalidRequest, match=r"train\.csv became shorter.* again"):
        client.add_dataset("toy", {"train": file}, in_parts_from=1)
    assert server.deleted == 1


def test_file_that_disappears_before_its_upload_is_an_error(file: Path) -> None:
    server = PartServer()

    def disappears(request: httpx.Request) -> httpx.Response:
        file.unlink(missing_ok=True)
        return server(request)

    with client_of(disappears) as client, pytest.raises(InvalidRequest, match=r"Failed reading .*train\.csv"):
        client.add_dataset("toy", {"train": file}, in_parts_from=1)
    assert server.deleted == 1


def test_file_that_grows_during_the_upload_is_uploaded_as_announced(file: Path) -> None:
    server = PartServer()

    def grows(request: httpx.Request) -> httpx.Response:
        if server.announced and file.stat().st_size == len(CONTENT):
            file.write_bytes(CONTENT + b"more")
        return server(request)

    with client_of(grows) as client:
        client.add_dataset("toy", {"train": file}, in_parts_from=1)
    assert server.received == CONTENT and server.announced == hashlib.sha256(CONTENT).hexdigest()


def test_request_for_the_dataset_is_repeated_after_a_lost_answer(file: Path) -> None:
    server = PartServer()
    server.loses_dataset = True
    with client_of(server) as client:
        assert client.add_dataset("toy", {"train": file}, in_parts_from=1).id == dataset_view()["id"]
    assert server.deleted == 0


def test_rejected_dataset_leaves_no_upload(file: Path) -> None:
    server = PartServer()
    server.rejects = True
    with client_of(server) as client, pytest.raises(InvalidDataset):
        client.add_dataset("toy", {"train": file}, in_parts_from=1)
    assert server.deleted == 1


def test_rejected_part_leaves_no_upload(file: Path) -> None:
    server = PartServer()

    def full(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT" and server.received:
            return problem(507, "storage_full", "no space left")
        return server(request)

    with client_of(full) as client, pytest.raises(StorageFull):
        client.add_dataset("toy", {"train": file}, in_parts_from=1)
    assert server.deleted == 1


def test_empty_file_is_rejected_before_the_upload(tmp_path: Path, file: Path) -> None:
    (tmp_path / "dev.csv").touch()
    server = PartServer()
    with client_of(server) as client, pytest.raises(InvalidDataset, match="is empty") as caught:
        client.add_dataset("toy", {"train": file, "validation": tmp_path / "dev.csv"}, in_parts_from=1)
    assert [(fault.code, fault.split) for fault in caught.value.faults] == [("empty_file", "validation")]
    assert server.announced == ""
