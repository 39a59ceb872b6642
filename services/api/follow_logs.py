"""Log lines as they come, as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from services.api.tail import Tailer
from services.common.jobstore import JobStore
from tlm_core.artifacts import canonical_json
from tlm_core.errors import NotFound, Unavailable
from tlm_core.jobs.states import TERMINAL

_PAGE = 500


async def follow_logs(
    jobs: JobStore,
    tailer: Tailer,
    tenant: str,
    job_id: str,
    after: str,
    *,
    interval: float = 0.5,
    keep_alive: float = 15,
) -> AsyncIterator[str]:
    """Lines after stream id `after`, each with its id, until the job is over; then `end` with its state.

    Ends without it when the gateway stops: whoever watches comes back. While the store is away the stream waits.
    """
    yield "retry: 1000\n\n"
    spoke = time.monotonic()
    while not tailer.closed:
        try:
            # The state first: what was told before a job was over is then surely among the lines.
            state = await run_in_threadpool(jobs.state, tenant, job_id)
            lines = await run_in_threadpool(jobs.logs, tenant, job_id, after=after, limit=_PAGE)
        except NotFound:  # deleted while it was watched
            return
        except Unavailable:
            await asyncio.sleep(interval)
            continue
        if lines:
            after, spoke = lines[-1]["id"], time.monotonic()
            yield "".join(f"id: {line['id']}\nevent: line\ndata: {canonical_json(line)}\n\n" for line in lines)
            continue
        if state in TERMINAL:
            yield f"event: end\ndata: {canonical_json({'state': state})}\n\n"
            return
        if time.monotonic() - spoke >= keep_alive:
            spoke = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(interval)
