"""Counts the processes of a container that the kernel has killed because memory ran out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from services.trainer.assignment import Assignment

# Files of cgroup v2 and v1. In a container, the root of the hierarchy is the container's own group.
_CGROUP = Path("/sys/fs/cgroup")
_COUNTERS = ("memory.events", "memory/memory.oom_control")


def oom_kills(root: Path = _CGROUP) -> int:
    """Return how many processes of this container the kernel has killed for lack of memory, or 0 if unknown."""
    for name in _COUNTERS:
        with suppress(OSError):
            for line in (root / name).read_text(encoding="ascii").splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return 0


def report_oom(assignment: Assignment) -> None:
    """Report that the kernel killed a worker. This error counts as a fault of the job."""
    from services.trainer.patience import report_error
    from services.trainer.settings import TrainerSettings
    from tlm_core.errors import WorkerFailed

    message = "Worker exceeded the memory limit of its container, and the kernel killed it. Increase the limit."
    error = WorkerFailed(message)
    report_error(TrainerSettings().job_store(), assignment.tenant, assignment.job, assignment.attempt, error)
