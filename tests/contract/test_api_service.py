"""The service: authorization, readiness, and the OpenAPI description."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from services.api.app import create_app
from services.api.openapi import answers
from services.common.archive import Archive
from services.common.history import History, Row
from services.common.logs import set_up_logging
from tests.contract.gateway import AUTH, TOKEN, Gateway, T
from tests.factories import make_resolved, make_spec
from tests.redis_server import RedisServer, free_port
from tests.support import ROOT, wait_for
from tlm_client.client import TLMClient
from tlm_core import wire

OPEN = {"/healthz", "/readyz"}


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic dGxtX3Rlc3Q=", "Bearer", "Bearer tlm_test2"])
def test_only_health_routes_need_no_token(api: TestClient, header: str | None) -> None:
    del api.headers["authorization"]
    for method, path, _ in operations(api.get("/openapi.json").json()):
        url = re.sub(r"{[^}]+}", "x", path)
        answer = api.request(method, url, headers={"Authorization": header} if header else {})
        if path in OPEN:
            assert answer.status_code != 401
        else:
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), path
            assert answer.headers["www-authenticate"] == "Bearer"


def test_every_route_refuses_unknown_query_parameters(api: TestClient) -> None:
    for method, path, operation in operations(api.get("/openapi.json").json()):
        answer = api.request(method, re.sub(r"{[^}]+}", "1", path), params={"maximum": "5"}, json={})
        assert answer.status_code == 422, path
        entry = next(entry for entry in answer.json()["errors"] if entry["code"] == "unknown_parameter")
        assert (entry["in"], entry["pointer"]) == ("query", "/maximum")
        names = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"}
        advice = f"Valid parameters: {', '.join(sorted(names))}." if names else "This path has no query parameters."
        assert entry["message"] == f"is not a known parameter. {advice}"


def test_readiness_names_unavailable_components(gateway: Gateway) -> None:
    with gateway.test_client() as api:
        names = {"redis", "storage", "retriever", "events", "webhooks", "removals", "coordinator"}
        assert api.get("/readyz").json() == dict.fromkeys(names, "ok")
        with gateway.parts.tailer.task.round():
            raise RuntimeError("a bug")
        checks = api.get("/readyz").json()["checks"]
        assert checks["events"] == "The task 'events' fails: RuntimeError: a bug. Read the log."
        assert api.get("/healthz").status_code == 200, "The task may fail in each gateway."
        with gateway.parts.tailer.task.round():
            pass
        gateway.retriever.unavailable = True
        (gateway.root / "storage").rmdir()
        answer = api.get("/readyz")
        assert answer.status_code == 503
        assert {name for name, state in answer.json()["checks"].items() if state != "ok"} == {"storage", "retriever"}
        assert api.get("/healthz").status_code == 200


def test_health_and_streams_survive_requests_that_all_wait_for_the_storage(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, waiting, store = threading.Event(), list[object](), gateway.parts.jobs
    job, ended = (store.submit(T, make_spec(), make_resolved())[0] for _ in range(2))
    store.cancel(T, ended.id)
    Archive(store).move_marked()

    def hang(*args: object) -> list[Row]:
        waiting.append(args)
        assert answer.wait(60)
        return []

    def get(url: str, path: str) -> httpx.Response:
        return httpx.get(url + path, headers=AUTH, timeout=30)

    monkeypatch.setattr(History, "read", hang)
    monkeypatch.setattr(gateway.parts.artifacts, "check_mounted", hang)
    monkeypatch.setattr(shutil, "disk_usage", hang)
    with gateway.served() as url, ThreadPoolExecutor(60) as pool:
        events = pool.submit(lambda: [event.type for event in TLMClient(url, TOKEN).events(job.id)])
        wait_for(lambda: gateway.parts.tailer.watchers == 1)
        requests = [pool.submit(get, url, f"/v1/jobs/{ended.id}/logs") for _ in range(50)]
        try:
            wait_for(lambda: len(waiting) == 40)
            for _ in range(2):
                assert get(url, "/healthz").json() == {"status": "ok"}
                checks = get(url, "/readyz").json()["checks"]
                assert [name for name, state in checks.items() if state != "ok"] == ["storage"]
            figures = get(url, "/metrics").text
            assert "tlm_redis_up 1.0" in figures and "tlm_storage_free_bytes" not in figures
            assert len(waiting) == 42, "a component that hangs blocks one thread"
            store.cancel(T, job.id)
            assert "job.cancelled" in events.result(20)
        finally:
            answer.set()
            store.cancel(T, job.id)  # Otherwise its stream does not end.
        assert {request.result().status_code for request in requests} == {200}


def test_gateway_whose_task_has_stopped_is_not_healthy(gateway: Gateway) -> None:
    with gateway.test_client() as api:
        assert api.get("/healthz").status_code == 200
        gateway.parts.tailer.close()
        answer = wait_for(lambda: (response := api.get("/healthz")).is_error and response)
        assert answer.status_code == 503
        assert answer.json()["detail"] == "The task 'events' has stopped. Restart the process."


def test_every_time_is_rfc_3339(api: TestClient) -> None:
    seen = set()
    for schema in api.get("/openapi.json").json()["components"]["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            if name in ("at", "until") or name.endswith("_at"):
                seen.add(name)
                assert '"format": "date-time"' in json.dumps(field), (schema["title"], name)
    assert {"at", "created_at", "updated_at", "started_at", "finished_at", "next_at", "until"} <= seen


def test_openapi_examples_override_no_key_that_lowers_scores(api: TestClient) -> None:
    assert "joint.rho2" not in api.get("/openapi.json").text


def test_openapi_documents_every_body_and_response(api: TestClient) -> None:
    schema = api.get("/openapi.json").json()
    seen = 0
    for method, path, operation in operations(schema):
        where = f"{method} {path}"
        assert operation.get("summary") and operation.get("description"), where
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            body = content["schema"]
            named = schema["components"]["schemas"].get(body.get("$ref", "").rsplit("/", 1)[-1], {})
            assert "example" in content or body.get("examples") or named.get("examples"), f"{where} {kind}"
            seen += 1
        for parameter in operation.get("parameters", ()):
            assert "example" in parameter or not parameter["required"], where
        codes = operation["responses"]
        good = [code for code in codes if code.startswith("2")]
        assert good, where
        for code in good:
            content = codes[code].get("content", {})
            assert content or code in ("204", "206"), where
            assert all(media_type.get("schema") not in ({}, None) for media_type in content.values()), where
            assert all("example" in media_type for media_type in content.values()), where
        if path not in OPEN:
            assert {"401", "422", "500", "503"} <= set(codes), where
        assert "413" in codes or "requestBody" not in operation, where
        problem = {"$ref": "#/components/schemas/Problem"}
        for code in set(codes) - set(good):
            assert codes[code]["content"]["application/problem+json"]["schema"] == problem, f"{where} {code}"
    assert seen >= 6


def answer_class(name: str) -> Any:
    """Return the class of tlm_core.wire with this name in the schema."""
    if match := re.fullmatch(r"(Page|Items)_(\w+)_", name):
        return getattr(wire, match[1])[getattr(wire, match[2], wire.JsonObject)]
    return getattr(wire, name.rpartition("__")[2], wire.JsonObject)


def test_reference_begins_with_the_usual_operations(api: TestClient) -> None:
    schema = api.get("/openapi.json").json()
    tags = [tag["name"] for tag in schema["tags"]]
    assert tags[:3] == ["datasets", "jobs", "models"]
    assert set(tags) == {tag for _, _, operation in operations(schema) for tag in operation["tags"]}


def test_pages_of_the_documentation_ignore_unknown_parameters(api: TestClient) -> None:
    assert api.get("/docs/tutorial?utm_source=mail").status_code == 200
    icon = api.get("/favicon.ico")
    assert (icon.status_code, icon.headers["content-type"].split(";")[0]) == (200, "image/svg+xml")


def test_every_json_answer_has_an_example_that_matches_it(api: TestClient) -> None:
    examples = {name: content["example"] for name, content in answers(api.get("/openapi.json").json())}
    assert len(examples) > 35
    for name, example in examples.items():
        adapter = TypeAdapter(answer_class(name))
        answer = adapter.dump_python(adapter.validate_python(example), mode="json")
        assert answer == example, f"{name}: update services/api/examples.json"
        text = json.dumps(example)
        assert "hostile" not in text and "<script" not in text, f"{name} has a value of a test"


def test_openapi_examples_are_valid(api: TestClient) -> None:
    schema = api.get("/openapi.json").json()
    for method, path, operation in operations(schema):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            continue
        body = content["schema"]
        named = schema["components"]["schemas"].get(body.get("$ref", "").rsplit("/", 1)[-1], {})
        examples = body.get("examples") or named.get("examples") or [content.get("example")]
        for example in examples:
            if path in ("/v1/datasets/hub", "/v1/corpora/from-sources"):
                continue  # sends requests to the hub or to a remote store
            answer = api.request(method, re.sub(r"{[^}]+}", "x", path.replace("{alias}", "x@y")), json=example)
            # The request is valid: it creates something or names something that does not exist.
            assert answer.status_code in (201, 404), f"{path}: {answer.text}"


@pytest.mark.parametrize("path", ["/v1/info", "/healthz", "/v1/jobs/unknown", "/nowhere", "/ui/sign-in", "/v1/broken"])
def test_every_answer_has_a_request_id_and_errors_a_log_line(gateway: Gateway, path: str) -> None:
    app = create_app(gateway.parts)
    lines = io.StringIO()

    @app.get("/v1/broken")
    def broken() -> None:
        raise RuntimeError("defect")

    root = logging.getLogger()
    before = (root.handlers, root.level)
    try:
        set_up_logging("api", stream=lines)
        with TestClient(app, headers=AUTH, raise_server_exceptions=False) as api:
            new = api.get(path).headers["x-request-id"]
            assert re.fullmatch(r"req_\w{19}", new)
            assert api.get(path, headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
            assert api.get(path, headers={"X-Request-ID": "two words"}).headers["x-request-id"] not in (
                "two words",
                new,
            )
    finally:
        root.handlers, root.level = before
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    if path == "/v1/broken":
        traced = [line["request_id"] for line in logged if "RuntimeError: defect" in line.get("exception", "")]
        assert "mine-1" in traced, "the traceback has the id of the request"
    failed = [line for line in logged if line["event"] == "Error answer"]
    expected = {
        "/v1/jobs/unknown": ("/v1/jobs/{job}", 404),
        "/nowhere": ("none", 404),
        "/v1/broken": ("/v1/broken", 500),
    }
    assert [(line["route"], line["status"]) for line in failed] == ([expected[path]] * 3 if path in expected else [])
    assert all(line["request_id"] and line["method"] == "GET" and line["ms"] >= 0 for line in failed)
    assert [line.get("job_id") for line in failed] == ["unknown" if "/jobs/" in path else None] * len(failed)
    failures = [line for line in map(json.loads, lines.getvalue().splitlines()) if "failed" in line["event"]]
    assert [line.get("request_id") for line in failures][:2] == ([new, "mine-1"] if path == "/v1/broken" else [])


def test_info_has_version_and_limits(api: TestClient) -> None:
    info = api.get("/v1/info").json()
    assert info["scales"] == ["instant", "quick", "tiny", "small", "medium", "large"]
    assert info["max_predict_texts"] == 256


def test_hostile_ids_are_not_found(api: TestClient) -> None:
    for name in ("%00", "a%0d%0ab", "..%2f..", "%f0%9f%98%80", "{default}", "*", "x" * 5000, "%ff"):
        for path in (f"/v1/jobs/{name}", f"/v1/datasets/{name}", f"/v1/corpora/{name}"):
            answer = api.get(path)
            assert answer.status_code in (404, 422), path
            assert answer.json()["code"] in ("not_found", "invalid_request")


def test_process_starts_creates_a_token_and_stops(redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.client().flushall()
    port = free_port()
    (tmp_path / "storage").mkdir()
    (tmp_path / "scratch" / "hub" / "old").mkdir(parents=True)
    environment = {**os.environ, "TLM_API_PORT": str(port), "TLM_API_REDIS_URL": redis_server.url,
                   "TLM_API_REDIS_PASSWORD": redis_server.password, "TLM_API_STORAGE": str(tmp_path / "storage"),
                   "TLM_API_SCRATCH": str(tmp_path / "scratch"), "TLM_API_TOKEN_FILE": str(tmp_path / "token"),
                   "TLM_API_RETRIEVER_URL": "http://127.0.0.1:1", "TLM_API_INTERNAL_TOKEN": "x"}  # fmt: skip
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "services.api"], cwd=ROOT, env=environment, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not listening(port):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not (tmp_path / "scratch" / "hub").exists()
        token = tmp_path / "token"
        assert token.stat().st_mode & 0o777 == 0o600
        headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=10) as client:
            assert client.get("/v1/jobs").json() == {"data": [], "has_more": False}
            missing = client.get("/readyz").json()["checks"]
            assert missing["retriever"] != "ok"
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert all(line.startswith("{") for line in (tmp_path / "log").read_text().splitlines())


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
