"""Large files in parts: whatever breaks, the gateway ends up with every byte once."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.client.gateway import client_of, dataset_view, problem
from tlm_core.errors import InvalidDataset, StorageFull, Unavailable

CONTENT = bytes(range(256)) * 300


class PartServer:
    """Takes parts of at most 10,000 bytes; now and then the answer, or the request, is lost."""

    def __init__(self, seed: int, losses: int) -> None:
        self.random, self.losses = random.Random(seed), losses
        self.got, self.announced = b"", ""
        self.made: Any = None
        self.refuse = False
        self.deleted = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and request.url.path == "/v1/uploads":
            self.announced = json.loads(request.content)["sha256"]
            return httpx.Response(201, json={"id": "upl_1", "part_bytes": 10_000, "offset": 0})
        if request.method == "DELETE":
            self.deleted += 1
            return httpx.Response(204)
        if request.method == "GET":
            return httpx.Response(200, json={"offset": len(self.got)})
        if request.method == "PUT":
            return self._part(request)
        self.made = json.loads(request.content)
        if self.refuse:
            return problem(422, "invalid_dataset", "bad", errors=[{"code": "null_text", "message": "x", "row": 1}])
        return httpx.Response(201, json=dataset_view())

    def _part(self, request: httpx.Request) -> httpx.Response:
        lose = self.losses > 0 and self.random.random() < 0.5
        self.losses -= lose
        if lose and self.random.random() < 0.5:
            raise httpx.WriteError("the line is dead")
        first = int(request.headers["Content-Range"].removeprefix("bytes ").split("-")[0])
        if first != len(self.got):
            return problem(409, "conflict", "go on elsewhere", facts={"offset": len(self.got)})
        self.got += request.content
        if lose:
            raise httpx.ReadError("the answer is lost")
        return httpx.Response(200, json={"offset": len(self.got)})


@pytest.mark.parametrize("seed", range(8))
def test_every_byte_arrives_once_whatever_is_lost(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "train.csv"
    file.write_bytes(CONTENT)
    server = PartServer(seed, losses=6)
    with client_of(server) as client:
        client.add_dataset("toy", {"train": file}, in_parts_from=1)
    assert server.got == CONTENT
    assert server.announced == hashlib.sha256(CONTENT).hexdigest()
    assert server.made == {"name": "toy", "options": {}, "files": {"train": "upl_1"}}


def test_a_gateway_that_stays_away_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_bytes(CONTENT)
    server = PartServer(0, losses=0)

    def away(request: httpx.Request) -> httpx.Response:
        return problem(503, "unavailable", "away") if request.method == "PUT" else server(request)

    with client_of(away, tries=1) as client, pytest.raises(Unavailable, match="try again later"):
        client.add_dataset("toy", {"train": file}, in_parts_from=1)


def test_what_is_refused_is_not_left_lying_there(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_bytes(CONTENT)
    server = PartServer(0, losses=0)
    server.refuse = True
    with client_of(server) as client, pytest.raises(InvalidDataset):
        client.add_dataset("toy", {"train": file}, in_parts_from=1)
    assert server.deleted == 1


def test_an_empty_file_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(CONTENT)
    (tmp_path / "dev.csv").touch()
    files = {"train": tmp_path / "train.csv", "validation": tmp_path / "dev.csv"}
    server = PartServer(0, losses=0)
    with client_of(server) as client, pytest.raises(InvalidDataset, match="is empty") as caught:
        client.add_dataset("toy", files, in_parts_from=1)
    assert [(fault.code, fault.split) for fault in caught.value.faults] == [("empty_file", "validation")]
    assert server.announced == ""


def test_what_was_sent_before_a_part_was_refused_is_not_left_lying_there(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_bytes(CONTENT)
    server = PartServer(0, losses=0)

    def full(request: httpx.Request) -> httpx.Response:
        return problem(507, "storage_full", "no room") if request.method == "PUT" and server.got else server(request)

    with client_of(full) as client, pytest.raises(StorageFull):
        client.add_dataset("toy", {"train": file}, in_parts_from=1)
    assert server.deleted == 1
