"""Open 1,000 event streams at once and measure the delay with which each stream receives an event."""

from __future__ import annotations

import asyncio
import time

from benchmarks.gateway.server import TENANT, Gateway
from benchmarks.report import figure
from tlm_core.jobs.spec import JobSpec

JOBS = 20
STREAMS = 1_000
EVENTS = 15


def measure_streams(gateway: Gateway) -> None:
    """Print the delays of events. Each stream follows one of JOBS jobs, and each job has one event per second."""
    resolved = gateway.resolved()
    specs = [JobSpec(dataset="toy", corpus="docs", priority=10, seeds=(number,)) for number in range(JOBS)]
    jobs = [gateway.jobs.submit(TENANT, spec, resolved)[0].id for spec in specs]
    for _ in jobs:
        assert gateway.jobs.claim("bench", 3600) is not None
    delays, complete = asyncio.run(_Streams(gateway, jobs).run())
    delays.sort()
    figure("sse_delay_p95", [delays[int(0.95 * len(delays))]], unit="s", goal=1, better="lower")
    figure("sse_delay_p50", [delays[len(delays) // 2]], unit="s", better="lower")
    figure("sse_streams_whole", [float(complete)], unit="streams", goal=STREAMS)


class _Streams:
    """The readers of all streams and the writer of the events."""

    def __init__(self, gateway: Gateway, jobs: list[str]) -> None:
        self._gateway = gateway
        self._jobs = jobs
        self._open = 0
        self._delays: list[float] = []

    async def run(self) -> tuple[list[float], int]:
        """Return the delays of all events, and how many streams received every event in order."""
        writer = asyncio.create_task(self._write())
        readers = asyncio.gather(*map(self._read, range(STREAMS)))
        complete = await asyncio.wait_for(readers, 180)
        await writer
        return self._delays, sum(complete)

    async def _read(self, number: int) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._gateway.port)
        path = f"/v1/jobs/{self._jobs[number % JOBS]}/events"
        token = f"Authorization: Bearer {self._gateway.token}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{token}\r\nAccept: text/event-stream\r\n\r\n".encode())
        received, previous, event_type = 0, 0, ""
        while received < EVENTS:
            line = await reader.readline()
            name, _, value = line.decode().strip().partition(" ")
            if not line:
                return False
            if name == "HTTP/1.1" and value.startswith("200"):
                self._open += 1
            elif name == "id:":
                if previous and int(value) != previous + 1:
                    return False
                previous = int(value)
            elif name == "event:":
                event_type = value
            elif name == "data:" and event_type == "bench.event":
                sent = float(value.split('"sent":')[1].split("}")[0])
                self._delays.append(time.time() - sent)
                received += 1
        writer.close()
        return True

    async def _write(self) -> None:
        while self._open < STREAMS:
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        for _ in range(EVENTS):
            start = time.time()
            for job in self._jobs:
                events = [("bench.event", {"sent": time.time()})]
                await asyncio.to_thread(self._gateway.jobs.report, TENANT, job, 1, events=events)
            await asyncio.sleep(max(0.0, start + 1 - time.time()))
