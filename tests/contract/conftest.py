"""What tests share: gateways (empty, with a data set and a corpus, full of made things), a coordinator's world."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient

from tests.contract.coordinator_world import MovableClockStore, World
from tests.contract.dashboard_made import Made, filled_gateway
from tests.contract.gateway import TRAIN, Gateway, add_dataset, add_version, make_gateway
from tlm_core.wire import CorpusState


@pytest.fixture
def gateway(redis_client: redis.Redis, tmp_path: Path) -> Gateway:
    """An empty one."""
    return make_gateway(redis_client, tmp_path)


@pytest.fixture
def stocked(gateway: Gateway) -> None:
    """Give the gateway a data set `toy` and a corpus `docs`, version v1 ready. It leaves loads alone from now on."""
    gateway.parts.loads.stop()
    add_dataset(gateway, "toy", {"train": TRAIN})
    add_version(gateway, "docs", "v1", CorpusState.READY)


@pytest.fixture
def api(gateway: Gateway) -> Iterator[TestClient]:
    """A client of the gateway who knows the token."""
    with gateway.test_client() as client:
        yield client


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Made]]:
    """A gateway with a job in every state, for tests that change nothing which others look at."""
    with filled_gateway(tmp_path_factory.mktemp("dashboard")) as found:
        yield found


@pytest.fixture
def world(redis_client: redis.Redis, tmp_path: Path) -> World:
    """A coordinator's surroundings on a real store."""
    return World(MovableClockStore(redis_client), tmp_path)
