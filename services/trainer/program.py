"""The program that Ray runs for an attempt: `python -m services.trainer.program` with the arguments of an Assignment.

A single worker without a GPU computes in this process, which Ray starts where there is room. Ray Train starts all
others. Their start delays the work, so this module imports only what it needs itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from services.trainer.assignment import Assignment

_PR_SET_PDEATHSIG = 1  # of prctl(2): ends the child with its parent
# Of cgroup v2 and v1. In a container, the root of the hierarchy is the container's own group.
_CGROUP = Path("/sys/fs/cgroup")
_COUNTERS = ("memory.events", "memory/memory.oom_control")


def main() -> None:
    """Run the assignment on the command line. Exits non-zero if a worker failed."""
    assignment, kills = Assignment.read(), oom_kills()
    code = _in_child(lambda: _run(assignment))
    if (code == -signal.SIGKILL or (code and assignment.distributed)) and oom_kills() > kills:
        _report_memory(assignment)
    sys.exit(128 - code if code < 0 else code)


def _in_child(run: Callable[[], None]) -> int:
    """Run in a child, and return its exit code. The kernel kills the process with the most memory: not this one."""
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        run()
        sys.exit()
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _report_memory(assignment: Assignment) -> None:
    """Report that the kernel killed a worker. It counts as a fault of the job, not as a lost worker."""
    from services.trainer.settings import TrainerSettings
    from tlm_core.errors import WorkerFailed

    error = WorkerFailed("Worker exceeded the memory limit of its container, and the kernel killed it.")
    store, events = TrainerSettings().job_store(), [("attempt.error", error.as_dict())]
    store.report(assignment.tenant, assignment.job, assignment.attempt, events=events)


def oom_kills(root: Path = _CGROUP) -> int:
    """Return how often the kernel has killed a process of this container, or 0 where it does not count."""
    for name in _COUNTERS:
        with suppress(OSError):
            for line in (root / name).read_text(encoding="ascii").splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return 0


def _run(assignment: Assignment) -> None:
    if assignment.distributed:
        from services.trainer.ranks import run_workers

        run_workers(assignment)
    else:
        os.environ |= assignment.environment
        from services.trainer.compute import compute

        compute(assignment)


if __name__ == "__main__":
    main()
