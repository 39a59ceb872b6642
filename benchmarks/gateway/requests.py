"""Submitting and looking, under many clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from benchmarks.gateway.server import Served, T
from benchmarks.gateway.wire import Load, Wire, steady
from benchmarks.report import figure, remark
from tlm_core.jobs.spec import JobSpec

BODY = {"dataset": "toy", "corpus": "docs"}
Send = Callable[[int], Awaitable[int]]


def submits(served: Served, *, seconds: float) -> None:
    """100 clients, 50 submissions a second in all, each durable before it is answered; and the highest rate held."""

    async def run(rate: float, lasting: float) -> Load:
        wires = [Wire(served.port, served.token) for _ in range(100)]
        count = 0

        async def send(number: int) -> int:
            nonlocal count
            count += 1
            key = f"{rate}-{number}-{count}"
            return (await wires[number].request("POST", "/v1/jobs", BODY, **{"Idempotency-Key": key}))[0]

        try:
            return await steady(100, rate, lasting, send, 202)
        finally:
            for wire in wires:
                wire.close()

    asyncio.run(run(20, 3))
    loads = [asyncio.run(run(50, seconds)) for _ in range(3)]
    figure("submit_p50_50_a_second", [1e3 * one.quantile(0.5) for one in loads], unit="ms", goal=20, better="lower")
    figure("submit_p99_50_a_second", [1e3 * one.quantile(0.99) for one in loads], unit="ms", goal=100, better="lower")
    figure("submit_failures", [float(sum(one.bad for one in loads))], unit="requests", goal=0, better="lower")
    figure("submit_highest_rate", [_highest(lambda rate: asyncio.run(run(rate, seconds / 2)), 0.1)], unit="1/s")


def looks(served: Served, *, seconds: float, stored: int = 10_000) -> None:
    """200 pollers, each every 2 s, with 10,000 jobs stored; pages of the list; and the highest rate held."""
    ids = _store(served, stored)

    async def run(clients: int, rate: float, lasting: float, path: Callable[[int], str]) -> Load:
        wires = [Wire(served.port, served.token) for _ in range(clients)]

        async def send(number: int) -> int:
            return (await wires[number].request("GET", path(number)))[0]

        try:
            return await steady(clients, rate, lasting, send, 200)
        finally:
            for wire in wires:
                wire.close()

    def status(number: int) -> str:
        return f"/v1/jobs/{ids[number * 37 % len(ids)]}"

    def page(number: int) -> str:
        return f"/v1/jobs?limit=20&after={ids[number * 211 % len(ids)]}"

    asyncio.run(run(20, 20, 2, status))
    loads = [asyncio.run(run(200, 100, seconds, status)) for _ in range(3)]
    figure("status_p99_200_pollers", [1e3 * one.quantile(0.99) for one in loads], unit="ms", goal=30, better="lower")
    figure("status_failures", [float(sum(one.bad for one in loads))], unit="requests", goal=0, better="lower")
    pages = [asyncio.run(run(10, 10, seconds / 2, page)) for _ in range(3)]
    figure("list_page_p99_10000_jobs", [1e3 * one.quantile(0.99) for one in pages], unit="ms", goal=50, better="lower")
    highest = _highest(lambda rate: asyncio.run(run(200, rate, seconds / 2, status)), 0.03)
    figure("status_highest_rate", [highest], unit="1/s")


def _highest(run: Callable[[float], Load], limit: float) -> float:
    """The highest rate (1/s), of steps of a quarter, at which 99 % are answered within `limit` seconds, none badly.

    A rate is given up when it was missed twice: a short stall of the machine is no sign of load.
    """
    held, rate = 0.0, 50.0
    while rate < 5_000:
        for _ in range(2):
            load = run(rate)
            p99 = load.quantile(0.99)
            remark(f"  {rate:.0f}/s: {load.rate:.0f}/s answered, p99 {1e3 * p99:.1f} ms, {load.bad} badly")
            if not load.bad and p99 <= limit and load.rate >= 0.95 * rate:
                break
        else:
            break
        held, rate = load.rate, rate * 1.25
    return held


def _store(served: Served, count: int) -> list[str]:
    """Jobs until there are `count`; synced only at the end, since filling up is not what is measured."""
    jobs, _ = served.jobs.list_jobs(T, limit=1)
    resolved = jobs[0].resolved
    served.redis.config_set("appendfsync", "no")
    there = int(served.redis.zcard(f"tlm:{{{T}}}:jobs"))  # type: ignore[arg-type]
    for number in range(count - there):
        served.jobs.submit(T, JobSpec(**BODY, seeds=(number,)), resolved)
    served.redis.config_set("appendfsync", "always")
    found = served.redis.zrange(f"tlm:{{{T}}}:jobs", 0, -1)
    return [str(one) for one in found]  # type: ignore[union-attr]
