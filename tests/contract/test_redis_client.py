"""The connections to Redis."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import redis

from tests.redis_server import RedisServer
from tests.support import wait_for

_THREADS = 20


def test_burst_of_calls_leaves_few_idle_connections(redis_client: redis.Redis, redis_server: RedisServer) -> None:
    client, together = redis_server.client(), threading.Barrier(_THREADS)

    def hold(_: int) -> None:
        connection = client.connection_pool.get_connection()
        together.wait(10)
        client.connection_pool.release(connection)

    before = len(redis_client.client_list())
    for _ in range(6):  # More connections in total than the pool may have at once.
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(hold, range(_THREADS)))
    wait_for(lambda: len(redis_client.client_list()) - before <= 4, 5)
    assert client.ping()
    client.close()
