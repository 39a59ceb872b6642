"""Event streams: 1,000 open at once, and how long after it happened an event is seen."""

from __future__ import annotations

import asyncio
import time

from benchmarks.gateway.server import Served, T
from benchmarks.report import figure
from tlm_core.jobs.spec import JobSpec

JOBS = 20


def streams(served: Served, *, count: int = 1_000, events: int = 15) -> None:
    """Each of 1,000 readers follows one of 20 jobs; each job has an event a second."""
    resolved = served.jobs.list_jobs(T, limit=1)[0][0].resolved
    ids = []
    for number in range(JOBS):
        job, _ = served.jobs.submit(T, JobSpec(dataset="toy", corpus="docs", priority=10, seeds=(number,)), resolved)
        ids.append(job.id)
    for _ in range(JOBS):
        assert served.jobs.claim("bench", 3600) is not None
    delays, whole = asyncio.run(_run(served, ids, count, events))
    delays.sort()
    figure("sse_delay_p95", [delays[int(0.95 * len(delays))]], unit="s", goal=1, better="lower")
    figure("sse_delay_p50", [delays[len(delays) // 2]], unit="s", better="lower")
    figure("sse_streams_whole", [float(whole)], unit="streams", goal=count)


async def _run(served: Served, ids: list[str], count: int, events: int) -> tuple[list[float], int]:
    delays: list[float] = []
    opened = 0

    async def read(number: int) -> bool:
        nonlocal opened
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        job = ids[number % len(ids)]
        writer.write(
            f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n"
            "Accept: text/event-stream\r\n\r\n".encode()
        )
        seen, last, kind = 0, 0, ""
        while seen < events:
            line = await reader.readline()
            if not line:
                return False
            if line.startswith(b"HTTP/1.1 200"):
                opened += 1
            elif line.startswith(b"id: "):
                whole = last == 0 or int(line[4:]) == last + 1
                last = int(line[4:])
                if not whole:
                    return False
            elif line.startswith(b"event: "):
                kind = line[7:].decode().strip()
            elif line.startswith(b"data: ") and kind == "bench.event":
                at = float(line.split(b'"sent":')[1].split(b"}")[0])
                delays.append(time.time() - at)
                seen += 1
        writer.close()
        return True

    async def write() -> None:
        while opened < count:
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        for _ in range(events):
            began = time.time()
            for job in ids:
                told = [("bench.event", {"sent": time.time()})]
                await asyncio.to_thread(served.jobs.report, T, job, 1, events=told)
            await asyncio.sleep(max(0.0, began + 1 - time.time()))

    readers = [asyncio.create_task(read(number)) for number in range(count)]
    writer = asyncio.create_task(write())
    found = await asyncio.wait_for(asyncio.gather(*readers), 180)
    await writer
    return delays, sum(found)
