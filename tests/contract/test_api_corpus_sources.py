"""Corpora that the service fetches from allowed sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import fsspec
import pytest
import redis
from fastapi.testclient import TestClient

from services.api.intake import check_sources
from tests.contract.corpora import LINES, wait_for_corpus
from tests.contract.gateway import Gateway, make_gateway
from tlm_core.errors import InvalidRequest

ALLOWED = "memory://texts/open"


@pytest.fixture
def gateway(redis_client: redis.Redis, tmp_path: Path) -> Gateway:
    return make_gateway(redis_client, tmp_path, sources=(ALLOWED,))


@pytest.fixture
def api(gateway: Gateway) -> Iterator[TestClient]:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/texts/open/a.jsonl": LINES.encode(), "/texts/closed/b.jsonl": LINES.encode()})
    with gateway.test_client() as client:
        yield client
    fs.rm("/texts", recursive=True)


def fetch(api: TestClient, *sources: str) -> tuple[int, dict[str, object]]:
    answer = api.post("/v1/corpora/from-sources", json={"name": "docs", "sources": sources})
    return answer.status_code, answer.json()


def test_allowed_source_equals_an_upload_of_its_files(api: TestClient) -> None:
    status, load = fetch(api, f"{ALLOWED}/")
    assert (status, load["state"], load["sources"]) == (202, "queued", [f"{ALLOWED}/"])
    fetched = wait_for_corpus(api)
    assert fetched["loads"][0]["state"] == "ready"
    sent = api.post("/v1/corpora", data={"name": "sent"}, files={"files": ("a.jsonl", LINES)})
    assert sent.status_code == 202
    assert wait_for_corpus(api, "sent")["version"] == fetched["version"]


def test_source_is_fetched_to_the_scratch_folder(api: TestClient, gateway: Gateway) -> None:
    memory = type(fsspec.filesystem("memory"))
    with patch.object(memory, "get_file", autospec=True, side_effect=memory.get_file) as fetch_file:
        assert fetch(api, ALLOWED)[0] == 202
        assert wait_for_corpus(api)["loads"][0]["state"] == "ready"
    (_, _, copy), _ = fetch_file.call_args
    assert Path(copy).is_relative_to(gateway.parts.settings.scratch / "work")


def test_disallowed_source_is_refused_before_any_request(api: TestClient) -> None:
    status, problem = fetch(api, ALLOWED, "memory://texts/closed/b.jsonl")
    assert status == 422
    assert "closed" in str(problem["detail"]) and ALLOWED in str(problem["detail"])
    assert api.get("/v1/corpora/docs").status_code == 404


def test_load_of_a_missing_source_fails(api: TestClient) -> None:
    assert fetch(api, f"{ALLOWED}/nothing")[0] == 202
    load = wait_for_corpus(api)["loads"][0]
    assert load["state"] == "failed" and "nothing" in load["error"]["message"]


@pytest.mark.parametrize(("source", "prefix", "fits"), [
    ("s3://bucket/a", "s3://bucket", True), ("s3://bucket", "s3://bucket", True),
    ("s3://bucket2/a", "s3://bucket", False),
    ("s3://any/a", "s3://", True), ("hub:owner/name", "hub:", True), ("hub:owner/name", "hub:owner", True),
    ("hub:owner2/name", "hub:owner", False), ("s3://bucket/../other/a", "s3://bucket", False),
    ("s3://bucket/%2E%2e/other", "s3://bucket", False), ("s3://bucket/a::file:///etc", "s3://bucket", False),
    ("hub:/etc/x", "hub:", False), ("hub:name", "hub:", False), ("hub:a/b/c", "hub:", False),
    ("hub:a/b@main", "hub:", False), ("hub:owner/name:config:split", "hub:", True),
    *((f"https://host/open/{path}", "https://host/open", False) for path in (
        "..%2fclosed", "%2e%2e%2fclosed", ".%2E%5cclosed", "%252e%252e/closed", "%25252525252e./closed", "..?x=",
        "..#a", "..;a/closed", "..%3Fx=", "a%0d%0ab",
    )),
    ("https://host/open/100%25.csv", "https://host/open", True), ("https://host/open/a..b", "https://host/open", True),
    ("hub:owner/name", "hub:owner/name", True), ("hub:owner/name:config", "hub:owner/name", True),
    ("hub:owner/name:config:train", "hub:owner/name", True),
    ("hub:owner/name2:config", "hub:owner/name", False), ("https://host:81/a", "https://host", False),
    ("https://host@evil/a", "https://host", False), ("/etc/passwd", "/etc", False), ("file:///x.csv", "s3://", False),
])  # fmt: skip
def test_only_allowed_prefixes_pass(source: str, prefix: str, fits: bool) -> None:
    if fits:
        check_sources([source], [prefix])
        return
    with pytest.raises(InvalidRequest):
        check_sources([source], [prefix])
