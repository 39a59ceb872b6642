"""The rendezvous of workers without torch: three workers, each a thread."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from typing import Any

import pytest

from services.trainer.process_group import Broadcast, Rendezvous, StageLoader, join
from tlm_core.stages import PREPARE

HOST, SECRET = "127.0.0.1", b"secret"


def join_all(pool: ThreadPoolExecutor, others: int = 2) -> list[Broadcast]:
    rendezvous = Rendezvous(HOST, SECRET, others)
    first = pool.submit(rendezvous.wait)
    rest = [pool.submit(join, rendezvous.address, SECRET) for _ in range(others)]
    return [future.result(10) for future in (first, *rest)]


def test_broadcast_returns_the_value_of_rank_0_on_every_rank() -> None:
    with ThreadPoolExecutor(3) as pool:
        first, second, third = join_all(pool)
        for value in ({"done": ["prepare"]}, None, "x" * 1_000_000):
            waiting: list[Future[Any]] = [pool.submit(first, value), pool.submit(second, "ignored")]
            with pytest.raises(TimeoutError):
                waiting[0].result(0.2)
            assert third("ignored") == value
            assert [future.result(10) for future in waiting] == [value, value]


def test_death_of_rank_0_ends_the_waiting_ranks() -> None:
    with ThreadPoolExecutor(2) as pool, Listener((HOST, 0), authkey=SECRET) as listener:
        opened = pool.submit(listener.accept)
        waiting = pool.submit(join(listener.address, SECRET), None)
        opened.result(10).close()
        with pytest.raises(EOFError):
            waiting.result(10)


def test_connection_without_the_secret_is_rejected() -> None:
    rendezvous = Rendezvous(HOST, SECRET, 1)
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(rendezvous.wait)
        with pytest.raises(AuthenticationError):
            Client(rendezvous.address, authkey=b"another")
        with pytest.raises(AuthenticationError):
            opened.result(10)


def test_preparing_text_starts_no_process_group() -> None:
    load = StageLoader(lambda value: value, HOST, 0, 2)
    assert load(PREPARE) is PREPARE.load()
    load.close()  # does nothing without a process group
