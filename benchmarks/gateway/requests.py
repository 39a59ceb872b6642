"""Submit jobs and read their status under load."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from benchmarks.gateway.load import Connection, Load, run_load
from benchmarks.gateway.server import TENANT, Gateway
from benchmarks.report import figure, remark
from tlm_core.jobs.spec import JobSpec

BODY = {"dataset": "toy", "corpus": "docs"}
SECONDS = 10.0  # duration of each run under load
STORED = 10_000  # jobs
Run = Callable[[float, float], Load]


def measure_submissions(gateway: Gateway) -> None:
    """Submit 50 jobs per second from 100 clients. Then measure the highest rate without failures."""
    keys = itertools.count()

    async def submit(connection: Connection, number: int) -> int:
        return await connection.request("POST", "/v1/jobs", BODY, {"Idempotency-Key": f"{number}-{next(keys)}"})

    def run(rate: float, duration: float) -> Load:
        return asyncio.run(run_load(gateway.connect, 100, rate, duration, submit, expected=202))

    run(20, 3)
    loads = [run(50, SECONDS) for _ in range(3)]
    _print_quantile("submit_p50_50_a_second", loads, 0.5, goal=20)
    _print_quantile("submit_p99_50_a_second", loads, 0.99, goal=100)
    figure("submit_failures", [sum(load.failures for load in loads)], unit="requests", goal=0, better="lower")
    figure("submit_highest_rate", [_highest_rate(run, limit=0.1)], unit="1/s")


def measure_status(gateway: Gateway) -> None:
    """Measure with STORED jobs: a status for 200 clients every 2 s, pages of the list, and the highest status rate."""
    ids = _store_jobs(gateway, STORED)

    def run(clients: int, rate: float, duration: float, path: Callable[[int], str]) -> Load:
        async def read(connection: Connection, number: int) -> int:
            return await connection.request("GET", path(number))

        return asyncio.run(run_load(gateway.connect, clients, rate, duration, read, expected=200))

    def status(number: int) -> str:
        return f"/v1/jobs/{ids[number * 37 % len(ids)]}"

    def page(number: int) -> str:
        return f"/v1/jobs?limit=20&after={ids[number * 211 % len(ids)]}"

    run(20, 20, 2, status)
    loads = [run(200, 100, SECONDS, status) for _ in range(3)]
    _print_quantile("status_p99_200_pollers", loads, 0.99, goal=30)
    figure("status_failures", [sum(load.failures for load in loads)], unit="requests", goal=0, better="lower")
    pages = [run(10, 10, SECONDS / 2, page) for _ in range(3)]
    _print_quantile("list_page_p99_10000_jobs", pages, 0.99, goal=50)
    highest = _highest_rate(lambda rate, duration: run(200, rate, duration, status), limit=0.03)
    figure("status_highest_rate", [highest], unit="1/s")


def _print_quantile(name: str, loads: list[Load], share: float, *, goal: float) -> None:
    figure(name, [1e3 * load.quantile(share) for load in loads], unit="ms", goal=goal, better="lower")


def _highest_rate(run: Run, *, limit: float) -> float:
    """Return the highest rate (1/s) at which no request fails and 99 % have an answer within `limit` seconds.

    The rate grows by a quarter until two runs at the same rate do not reach this goal. If only one of the two runs
    misses the goal, the reason may be a delay of the machine.
    """
    highest, rate = 0.0, 50.0
    while rate < 5_000:
        loads = (run(rate, SECONDS / 2) for _ in range(2))
        load = next((load for load in loads if _holds(load, rate, limit)), None)
        if load is None:
            break
        highest, rate = load.rate, rate * 1.25
    return highest


def _holds(load: Load, rate: float, limit: float) -> bool:
    p99 = load.quantile(0.99)
    remark(f"  {rate:.0f}/s: {load.rate:.0f}/s answered, p99 {1e3 * p99:.1f} ms, {load.failures} failures")
    return not load.failures and p99 <= limit and load.rate >= 0.95 * rate


def _store_jobs(gateway: Gateway, count: int) -> list[str]:
    """Store jobs until there are `count`, and return all ids. For speed, Redis does not sync these writes."""
    index = f"tlm:{{{TENANT}}}:jobs"
    resolved = gateway.resolved()
    gateway.redis.config_set("appendfsync", "no")
    for number in range(count - gateway.redis.zcard(index)):
        gateway.jobs.submit(TENANT, JobSpec(**BODY, seeds=(number,)), resolved)
    gateway.redis.config_set("appendfsync", "always")
    return list(gateway.redis.zrange(index, 0, -1))
