"""Both clients have every operation of the API, and the same ones."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import redis

from tests.contract.gateway import make_gateway
from tlm_client.client import AsyncTLMClient, TLMClient
from tlm_core.artifacts import FileEntry
from tlm_core.errors import TLMError
from tlm_core.jobs.spec import JobSpec
from tlm_core.wire import Checkpoint

# Of use to probes alone; `ready` tells more.
LEFT_OUT = {("GET", "/healthz")}
OWN = {"close", "aclose"}


class Seen:
    """Answers so that operations go on as far as they can, and notes what was asked for."""

    def __init__(self) -> None:
        self.asked: set[tuple[str, str]] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return self.answer(request.method, request.url.path)

    async def later(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self.answer(request.method, request.url.path)

    def answer(self, method: str, path: str) -> httpx.Response:
        self.asked.add((method, path))
        if (method, path) == ("POST", "/v1/uploads"):
            return httpx.Response(201, json={"id": "upl_x", "part_bytes": 1 << 20})
        if method == "PUT":  # the answer to the part is lost, and then it is seen that it has arrived
            return httpx.Response(503, json={"code": "unavailable", "detail": "away"})
        if path == "/v1/uploads/upl_x":
            return httpx.Response(200, json={"offset": 4})
        if path.endswith(("/model", "/files")):
            entry = {"name": "a/b.bin", "size": 1, "sha256": "0" * 64}
            return httpx.Response(200, json={"files": [entry], "data": [entry]})
        return httpx.Response(404, json={"code": "not_found", "detail": "nothing is here"})


def methods(cls: type) -> dict[str, Any]:
    found = {name: value for name, value in vars(cls).items() if inspect.isfunction(value) and name[0] != "_"}
    return {name: value for name, value in found.items() if name not in OWN}


def calls(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each method with values for what it has to be given; those that send files with small and with large ones."""
    file = folder / "train.csv"
    file.write_text("text")
    known: dict[str, Any] = {
        "files": {"train": file}, "spec": JobSpec(dataset="toy"), "folder": folder / "out", "job_ids": ["a", "b"],
        "sources": ["hub:a/b"], "texts": ["x"], "count": 5, "target": folder / "all.tar",
        "checkpoint": Checkpoint(node="n", step=1, job="j", attempt=1, metrics={},
                                 files=(FileEntry(name="x", size=1, sha256="0" * 64),)),
    }  # fmt: skip
    for name, method in methods(TLMClient).items():
        parameters = inspect.signature(method).parameters.values()
        given = {p.name: known.get(p.name, "x") for p in parameters if p.default is p.empty}
        if name == "add_corpus":
            given["files"] = [file]
        yield name, given
        if "files" in given:
            yield name, {**given, "in_parts_from": 1}
        if name == "delete_corpus":
            yield name, {**given, "version": "v1"}


def asked_in_turn(folder: Path) -> set[tuple[str, str]]:
    seen = Seen()
    transport = httpx.MockTransport(seen)
    with TLMClient("http://gateway", "t", tries=1, transport=transport, sleep=lambda _: None) as client:
        for name, given in calls(folder):
            with suppress(TLMError):
                found = getattr(client, name)(**given)
                if isinstance(found, Iterator):
                    list(found)
    return seen.asked


async def asked_awaiting(folder: Path) -> set[tuple[str, str]]:
    seen = Seen()

    async def at_once(_: float) -> None:
        return None

    transport = httpx.MockTransport(seen.later)
    async with AsyncTLMClient("http://gateway", "t", tries=1, transport=transport, sleep=at_once) as client:
        for name, given in calls(folder):
            with suppress(TLMError):
                found = getattr(client, name)(**given)
                if inspect.isawaitable(found):
                    await found
                else:
                    _ = [one async for one in found]
    return seen.asked


def operation_of(method: str, path: str, known: set[tuple[str, str]]) -> tuple[str, str]:
    """The operation that a request belongs to; of several paths that fit, the most literal one, as in the gateway."""
    fits = [
        one
        for one in known
        if one[0] == method
        # A file's name may have slashes.
        and re.fullmatch(re.sub(r"{[^}]*}", "[^/]+", one[1].replace("{name}", "\0")).replace("\0", ".+"), path)
    ]
    assert fits, f"{method} {path} is no operation of the API"
    return min(fits, key=lambda one: one[1].count("{"))


def test_the_client_asks_for_every_operation_of_the_api_and_for_nothing_else(
    redis_client: redis.Redis, tmp_path: Path
) -> None:
    with make_gateway(redis_client, tmp_path / "gateway").test_client() as api:
        paths = api.get("/openapi.json").json()["paths"]
    known = {(method.upper(), path) for path, one in paths.items() for method in one} - LEFT_OUT
    assert {operation_of(*one, known) for one in asked_in_turn(tmp_path)} == known


def test_both_clients_are_the_same_but_for_waiting(tmp_path: Path) -> None:
    ours, theirs = methods(TLMClient), methods(AsyncTLMClient)
    assert list(ours) == list(theirs)
    for name, method in ours.items():
        assert method.__doc__, name
        assert inspect.signature(method) == inspect.signature(theirs[name])
    assert asyncio.run(asked_awaiting(tmp_path)) == asked_in_turn(tmp_path)
