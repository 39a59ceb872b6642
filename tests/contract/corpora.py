"""Upload corpora and wait for their loads."""

from __future__ import annotations

import json
from typing import Any

from fastapi.testclient import TestClient

from tests.contract.gateway import Gateway
from tests.support import wait_for

T = "default"
LINES = "".join(
    json.dumps({"text": f"A sentence about the thing number {n}. " * 6, "source": "s"}) + "\n" for n in range(5)
)


def post(api: TestClient, text: str = LINES, name: str = "docs", file: str = "a.jsonl", **data: str) -> Any:
    return api.post("/v1/corpora", data={"name": name, **data}, files={"files": (file, text)})


def wait_for_corpus(api: TestClient, name: str = "docs") -> dict[str, Any]:
    """Wait until the latest load of the corpus ends, and return the corpus."""
    return wait_for(lambda: idle_corpus(api, name))


def idle_corpus(api: TestClient, name: str) -> Any:
    """Return the corpus, or None while its latest load runs."""
    corpus = api.get(f"/v1/corpora/{name}").json()
    return corpus if corpus["loads"][0]["state"] in ("ready", "failed") else None


def queue_load(gateway: Gateway) -> str:
    """Upload a corpus that the gateway accepts but does not load. Return the id of the load."""
    gateway.loads.stop()
    with gateway.test_client() as api:
        return str(post(api).json()["id"])
