"""Generated requests to each operation: no server error, and each response matches the OpenAPI description."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.contract.gateway import AUTH, Gateway, add_version, make_gateway, upload
from tests.contract.job_results import complete
from tests.support import skip_or_fail
from tlm_core.corpus.states import CorpusState

EXAMPLES = 7
# Generated requests must not reach the hub.
EXCLUDED = {"/v1/datasets/hub"}
# These parameters keep the connection open. Other tests cover them.
STREAMING = {"stream", "follow"}


@pytest.fixture
def gateway(redis_client: redis.Redis, tmp_path: Path) -> Iterator[tuple[Gateway, str]]:
    """A gateway with a dataset, a corpus and a finished job, on a socket."""
    if importlib.util.find_spec("schemathesis") is None:
        skip_or_fail("schemathesis is not installed")
    full_gateway = make_gateway(redis_client, tmp_path, max_upload_bytes=1 << 20)
    full_gateway.loads.stop()
    with full_gateway.test_client() as api:
        assert upload(api).status_code == 201
        add_version(full_gateway, "docs", "v1", CorpusState.READY)
        assert api.post("/v1/jobs", json={"dataset": "toy", "corpus": "docs"}).status_code == 202
        job = full_gateway.parts.jobs.claim("a", 60)
        assert job is not None
        complete(full_gateway.parts.jobs, full_gateway.parts.artifacts, job, full_gateway.root)
        full_gateway.parts.jobs.finish(job, "a", {})
    with make_gateway(redis_client, tmp_path, max_upload_bytes=1 << 20).served() as url:
        yield full_gateway, url


def prober(operation: Any, url: str, existing: dict[str, str], violations: list[str]) -> Callable[[], int]:
    """Return a function that sends generated requests and returns their number. It appends to `violations`."""
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
    sent = 0

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def probe(case: Any) -> None:
        nonlocal sent
        sent += 1
        if sent % 2:  # half of the requests name existing things
            case.path_parameters = {k: existing.get(k, v) for k, v in (case.path_parameters or {}).items()}
        case.query = {k: v for k, v in (case.query or {}).items() if k not in STREAMING}
        answer = case.call(base_url=url, headers=AUTH, timeout=120)
        try:
            case.validate_response(answer, checks=checks)
        except BaseExceptionGroup as errors:
            violations.extend(f"{case.method} {operation.path}: {error}" for error in errors.exceptions)
        except AssertionError as error:
            violations.append(f"{case.method} {operation.path}: {error}")

    def run() -> int:
        probe()
        return sent

    return run


@pytest.mark.timeout(900)
def test_every_response_matches_the_openapi_description(gateway: tuple[Gateway, str]) -> None:
    import schemathesis

    full_gateway, url = gateway
    existing = {"job": full_gateway.parts.jobs.list_jobs("default")[0][0].id, "dataset": "toy", "corpus": "docs"}
    schema = schemathesis.openapi.from_dict(httpx.get(f"{url}/openapi.json", timeout=120).json())
    violations: list[str] = []
    operations = [result.ok() for result in schema.get_all_operations()]
    sent = [
        prober(operation, url, existing, violations)() for operation in operations if operation.path not in EXCLUDED
    ]
    assert sum(sent) > 5 * len(sent)
    assert not violations, "\n\n".join(violations[:20])
