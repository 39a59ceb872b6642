"""Both clients have the same methods, and these send every request of the API."""

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
from tlm_client.async_client import AsyncTLMClient
from tlm_client.client import TLMClient
from tlm_core.artifacts import FileEntry
from tlm_core.errors import TLMError
from tlm_core.jobs.spec import JobSpec
from tlm_core.wire import Checkpoint

# Only probes need this operation. `ready` reports more.
EXCLUDED = {("GET", "/healthz")}


class RecordingGateway:
    """Records requests and answers so that each method sends as many requests as possible."""

    def __init__(self) -> None:
        self.requests: set[tuple[str, str]] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return self.answer(request.method, request.url.path)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self.answer(request.method, request.url.path)

    def answer(self, method: str, path: str) -> httpx.Response:
        self.requests.add((method, path))
        upload = {"id": "upl_x", "name": "x", "size": 4, "sha256": None, "part_bytes": 1 << 20, "expires_seconds": 60}
        if (method, path) == ("POST", "/v1/uploads") or (method, path) == ("GET", "/v1/uploads/upl_x"):
            return httpx.Response(200, json={**upload, "offset": 0})
        if method == "PUT":
            return httpx.Response(200, json={**upload, "offset": 4})
        if path.endswith(("/model", "/files")):
            entry = {"name": "a/b.bin", "size": 1, "sha256": "0" * 64}
            return httpx.Response(200, json={"digest": "d", "size": 1, "files": [entry], "data": [entry]})
        return httpx.Response(404, json={"code": "not_found", "detail": "not here"})


def methods(client: type) -> dict[str, Any]:
    functions = {name: value for name, value in vars(client).items() if inspect.isfunction(value) and name[0] != "_"}
    return {name: value for name, value in functions.items() if name not in ("close", "aclose")}


def calls(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each method with its required arguments. Methods that upload files are called for both ways to do so."""
    file = folder / "train.csv"
    file.write_text("text")
    entry = FileEntry(name="x", size=1, sha256="0" * 64)
    known: dict[str, Any] = {
        "files": {"train": file}, "spec": JobSpec(dataset="toy"), "folder": folder / "out", "job_ids": ["a", "b"],
        "sources": ["hub:a/b"], "texts": ["x"], "count": 5, "target": folder / "all.tar",
        "checkpoint": Checkpoint(node="n", step=1, job="j", attempt=1, metrics={}, files=(entry,)),
    }  # fmt: skip
    for name, method in methods(TLMClient).items():
        parameters = inspect.signature(method).parameters.values()
        arguments = {p.name: known.get(p.name, "x") for p in parameters if p.default is p.empty and p.name != "self"}
        if name == "add_corpus":
            arguments["files"] = [file]
        yield name, arguments
        if "files" in arguments:
            yield name, {**arguments, "in_parts_from": 1}
        if name == "delete_corpus":
            yield name, {**arguments, "version": "v1"}


def requests_of_sync_client(folder: Path) -> set[tuple[str, str]]:
    gateway = RecordingGateway()
    transport = httpx.MockTransport(gateway)
    with TLMClient("http://gateway", "t", tries=1, transport=transport, sleep=lambda _: None) as client:
        for name, arguments in calls(folder):
            with suppress(TLMError):
                result = getattr(client, name)(**arguments)
                if isinstance(result, Iterator):
                    list(result)
    return gateway.requests


async def requests_of_async_client(folder: Path) -> set[tuple[str, str]]:
    gateway = RecordingGateway()

    async def sleep(_: float) -> None:
        return None

    transport = httpx.MockTransport(gateway.handle)
    async with AsyncTLMClient("http://gateway", "t", tries=1, transport=transport, sleep=sleep) as client:
        for name, arguments in calls(folder):
            with suppress(TLMError):
                result = getattr(client, name)(**arguments)
                if inspect.isawaitable(result):
                    await result
                else:
                    _ = [item async for item in result]
    return gateway.requests


def operation_of(method: str, path: str, operations: set[tuple[str, str]]) -> tuple[str, str]:
    """Return the operation that serves a request: of all that match, the one with the fewest parameters."""
    matches = [
        operation
        for operation in operations
        if operation[0] == method
        # A file name may contain slashes.
        and re.fullmatch(re.sub(r"{[^}]*}", "[^/]+", operation[1].replace("{name}", "\0")).replace("\0", ".+"), path)
    ]
    assert matches, f"{method} {path} is not an operation of the API"
    return min(matches, key=lambda operation: operation[1].count("{"))


def test_client_sends_every_request_of_the_api(redis_client: redis.Redis, tmp_path: Path) -> None:
    with make_gateway(redis_client, tmp_path / "gateway").test_client() as api:
        paths = api.get("/openapi.json").json()["paths"]
    operations = {(method.upper(), path) for path, item in paths.items() for method in item} - EXCLUDED
    assert {operation_of(*request, operations) for request in requests_of_sync_client(tmp_path)} == operations


def test_both_clients_have_the_same_methods_and_send_the_same_requests(tmp_path: Path) -> None:
    sync_methods, async_methods = methods(TLMClient), methods(AsyncTLMClient)
    assert list(sync_methods) == list(async_methods)
    for name, method in sync_methods.items():
        assert method.__doc__, name
        assert inspect.signature(method).parameters == inspect.signature(async_methods[name]).parameters
    assert asyncio.run(requests_of_async_client(tmp_path)) == requests_of_sync_client(tmp_path)
