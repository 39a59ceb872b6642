"""Request estimates, and finish jobs for them to measure."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from tests.contract.gateway import Gateway
from tests.contract.recorded_jobs import record

BODY = {"dataset": "toy", "corpus": "docs"}


def estimate(api: TestClient, **over: Any) -> dict[str, Any]:
    answer = api.post("/v1/jobs/estimate", json=BODY | over)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def training(estimated: dict[str, Any]) -> dict[str, Any]:
    joint: dict[str, Any] = next(stage for stage in estimated["stages"] if stage["stage"] == "joint")
    return joint


def finish_job(
    api: TestClient,
    gateway: Gateway,
    seconds: float,
    counted: float = 0.0,
    gpu_seconds: float = 0.0,
    device: str = "",
    had_core: float = 1.0,
    one_by_one: bool = False,
    **over: Any,
) -> str:
    job_id = api.post("/v1/jobs", json=BODY | over).json()["id"]
    job = gateway.parts.jobs.claim("a", 60)
    assert job is not None and job.id == job_id
    record(
        gateway, job, lambda _: seconds, counted=counted, gpu_seconds=gpu_seconds, device=device, had_core=had_core,
        one_by_one=one_by_one,
    )  # fmt: skip
    return job_id
