"""The connections to Redis."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from services.common.redis_client import connect
from services.trainer.settings import TrainerSettings
from tests.redis_server import RedisServer
from tests.support import wait_for

_THREADS = 20


@pytest.mark.parametrize("most", [4, 2])
def test_burst_of_calls_leaves_few_idle_connections(
    redis_client: redis.Redis, redis_server: RedisServer, most: int
) -> None:
    client, together = (
        connect(redis_server.url, password=redis_server.password, idle_connections=most),
        threading.Barrier(_THREADS),
    )

    def hold(_: int) -> None:
        connection = client.connection_pool.get_connection()
        together.wait(10)
        client.connection_pool.release(connection)

    before = len(redis_client.client_list())
    for _ in range(6):  # More connections in total than the pool may have at once.
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(hold, range(_THREADS)))
    wait_for(lambda: len(redis_client.client_list()) - before <= most, 5)
    assert client.ping()
    client.close()


def test_coordinator_has_one_pool_with_two_idle_connections(tmp_path: Path) -> None:
    settings = TrainerSettings(storage=str(tmp_path / "storage"), scratch=tmp_path / "scratch")
    assert settings.job_store()._redis is settings.redis
    assert settings.redis.connection_pool.most_idle == 2
