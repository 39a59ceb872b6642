"""Commands about jobs: what they ask the gateway for, and what they print of its answer."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.unit.client.gateway import job_view
from tests.unit.client.test_cli import tlm

ESTIMATE = {
    "seconds": 125.0, "flops": 4.1e13, "tokens": 1e6, "memory_bytes": 464_000_000, "disk_bytes": None,
    "gpu_hours": None, "passages": 10_004, "passages_at_most": 13_500,
    "stages": [{"stage": "joint", "seconds": 100.0, "flops": 4e13, "tokens": 1e6, "basis": "measured",
                "reason": "measured on 3 runs"}],
    "reasons": {"gpu_hours": "no job has finished here yet"},
}  # fmt: skip


def test_an_estimate_says_where_its_figures_are_from_and_what_is_unknown() -> None:
    asked: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(200, json=ESTIMATE)

    arguments = ("estimate", "--dataset", "toy", "--corpus", "docs", "--seed", "1", "--set", "joint.rho2=5")
    told = tlm(handler, *arguments)
    assert told.exit_code == 0, told.output
    assert asked == [{"dataset": "toy", "corpus": "docs", "seeds": [1], "set": {"joint.rho2": 5}}]
    for part in ("2:05", "4.10e+13", "10,004 of at most 13,500", "GPU-hours unknown", "disk unknown", "measured on 3"):
        assert part in told.stdout
    assert json.loads(tlm(handler, *arguments, "--json").stdout)["gpu_hours"] is None


def test_a_dry_run_submits_nothing() -> None:
    view = job_view()
    dry = {key: view[key] for key in ("spec", "dataset_id", "dataset_digest", "resolved_recipe", "stages")}
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url.query))
        return httpx.Response(200, json={**dry, "corpus_version": "v1", "estimate": ESTIMATE})

    told = tlm(handler, "submit", "--dataset", "toy", "--dry-run")
    assert (told.exit_code, seen) == (0, ["b'dry_run=true'"]), told.output
    assert "2:05" in told.stdout and "job_" not in told.stdout
