"""Uploads of corpora that tests make, and waiting for what becomes of them."""

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


def settled(api: TestClient, name: str = "docs") -> dict[str, Any]:
    """The corpus, once its latest load is over."""
    return wait_for(lambda: found(api, name))


def found(api: TestClient, name: str) -> Any:
    corpus = api.get(f"/v1/corpora/{name}").json()
    return corpus if corpus["loads"][0]["state"] in ("ready", "failed") else None


def left_queued(gateway: Gateway) -> str:
    """The id of a load that the gateway takes and then leaves alone."""
    gateway.parts.loads.stop()
    with gateway.test_client() as api:
        return str(post(api).json()["id"])
