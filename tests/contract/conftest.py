"""Fixtures of the contract tests: gateways with different contents, and a coordinator."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from services.common.logs import set_up_logging
from tests.contract.coordinator_harness import CoordinatorHarness, MovableClockStore
from tests.contract.filled_dashboard import Contents, filled_gateway
from tests.contract.gateway import TRAIN, Gateway, add_dataset, add_version, make_gateway
from tlm_core.corpus.states import CorpusState


@pytest.fixture
def gateway(redis_client: redis.Redis, tmp_path: Path) -> Gateway:
    """Return a gateway without datasets, corpora or jobs."""
    return make_gateway(redis_client, tmp_path)


@pytest.fixture
def stocked(gateway: Gateway) -> None:
    """Add the dataset `toy` and the corpus `docs` with version v1. The gateway starts no load from now on."""
    gateway.loads.stop()
    add_dataset(gateway, "toy", {"train": TRAIN})
    add_version(gateway, "docs", "v1", CorpusState.READY)


@pytest.fixture
def api(gateway: Gateway) -> Iterator[TestClient]:
    """An authorized client of the gateway."""
    with gateway.test_client() as client:
        yield client


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Contents]]:
    """A gateway with a job in every state. Tests share it, so they must not change what others read."""
    with filled_gateway(tmp_path_factory.mktemp("dashboard")) as gateway_and_contents:
        yield gateway_and_contents


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Yield a function that returns the log lines of this process as records."""
    root = logging.getLogger()
    handlers, level, stream = root.handlers, root.level, io.StringIO()
    set_up_logging("test", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers, root.level = handlers, level


@pytest.fixture
def harness(redis_client: redis.Redis, tmp_path: Path) -> CoordinatorHarness:
    """A coordinator on a real job store."""
    return CoordinatorHarness(MovableClockStore(redis_client), tmp_path)


@pytest.fixture
def store(redis_client: redis.Redis) -> MovableClockStore:
    return MovableClockStore(redis_client)
