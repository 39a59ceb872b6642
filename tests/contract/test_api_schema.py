"""The whole API under made-up requests: no fault of the service, and no answer that its description does not have."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.contract.gateway import AUTH, Gateway, add_version, make_gateway, upload
from tests.contract.made_results import complete
from tests.support import skip_or_fail
from tlm_core.wire import CorpusState

EXAMPLES = 10
# The hub is not ours to ask.
LEFT_OUT = {"/v1/datasets/hub"}
# These keep the connection open, and are held by tests of their own.
STREAMING = {"stream", "follow"}


@pytest.fixture
def gateway(redis_client: redis.Redis, tmp_path: Path) -> Iterator[tuple[Gateway, str]]:
    """A gateway with a data set, a corpus and a finished job, on a socket."""
    if importlib.util.find_spec("schemathesis") is None:
        skip_or_fail("schemathesis is not installed")
    made = make_gateway(redis_client, tmp_path, max_upload_bytes=1 << 20)
    made.parts.loads.stop()
    with made.test_client() as api:
        assert upload(api).status_code == 201
        add_version(made, "docs", "v1", CorpusState.READY)
        assert api.post("/v1/jobs", json={"dataset": "toy", "corpus": "docs"}).status_code == 202
        job = made.parts.jobs.claim("a", 60)
        assert job is not None
        complete(made.parts.jobs, made.parts.artifacts, job, made.root)
        made.parts.jobs.finish(job, "a", {})
    with make_gateway(redis_client, tmp_path, max_upload_bytes=1 << 20).served() as url:
        yield made, url


def prober(operation: Any, url: str, there: dict[str, str], found: list[str]) -> Callable[[], int]:
    """Sends made-up requests of one operation; what is wrong with an answer goes to `found`. Returns how many."""
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
        if sent % 2:  # half of the requests are about something that is there
            case.path_parameters = {k: there.get(k, v) for k, v in (case.path_parameters or {}).items()}
        case.query = {k: v for k, v in (case.query or {}).items() if k not in STREAMING}
        answer = case.call(base_url=url, headers=AUTH, timeout=120)
        try:
            case.validate_response(answer, checks=checks)
        except BaseExceptionGroup as errors:
            found.extend(f"{case.method} {operation.path}: {error}" for error in errors.exceptions)
        except AssertionError as error:
            found.append(f"{case.method} {operation.path}: {error}")

    def run() -> int:
        probe()
        return sent

    return run


@pytest.mark.timeout(900)
def test_every_response_matches_the_openapi_description(gateway: tuple[Gateway, str]) -> None:
    import schemathesis

    made, url = gateway
    there = {"job": made.parts.jobs.list_jobs("default")[0][0].id, "dataset": "toy", "corpus": "docs"}
    schema = schemathesis.openapi.from_dict(httpx.get(f"{url}/openapi.json", timeout=120).json())
    found: list[str] = []
    operations = [result.ok() for result in schema.get_all_operations()]
    sent = [prober(one, url, there, found)() for one in operations if one.path not in LEFT_OUT]
    assert sum(sent) > 5 * len(sent)
    assert not found, "\n\n".join(found[:20])
