"""What each process of a submission does: run its part of the stages until they end or the machine stops."""

from __future__ import annotations

import signal
import sys
import threading
from functools import cache

from services.common.logs import set_up_logging
from services.trainer.assignment import Assignment
from services.trainer.settings import TrainerSettings
from services.trainer.worker import Broadcast, GroupRunner


def compute(
    assignment: Assignment, rank: int = 0, world_size: int = 1, broadcast: Broadcast = lambda value: value
) -> None:
    """Run the stages of one worker. Raises what a stage raises."""
    job, attempt, request_id = assignment.job, assignment.attempt, assignment.request_id
    set_up_logging("worker", job_id=job, attempt=attempt, request_id=request_id, rank=rank)
    settings = TrainerSettings()
    runner = GroupRunner(
        settings.job_store(),
        settings.artifact_store(),
        settings.scratch,
        rank=rank,
        world_size=world_size,
        broadcast=broadcast,
        draining=drain_on_sigterm(assignment),
    )
    runner.run(assignment)


@cache
def drain_on_sigterm(assignment: Assignment) -> threading.Event:
    """Return an event that SIGTERM sets: the stage then writes a checkpoint and stops.

    The first call must be in the main thread. Rank 0 decides when to stop. The other processes of a submission pass
    the signal on through the job's record. A stage that does not stop in time is ended; unlike the default handler,
    sys.exit deletes the working folders.
    """
    settings, draining = TrainerSettings(), threading.Event()

    def pass_on() -> None:
        settings.job_store().report(assignment.tenant, assignment.job, assignment.attempt, draining=True)

    def drain(*_: object) -> None:
        if draining.is_set():
            return
        draining.set()
        signal.setitimer(signal.ITIMER_REAL, settings.drain_seconds)
        if assignment.distributed:
            threading.Thread(target=pass_on, daemon=True).start()

    signal.signal(signal.SIGALRM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGTERM, drain)
    return draining
