"""The program that Ray runs for an attempt: `python -m services.trainer.program` with the arguments of an Assignment.

A single worker without a GPU computes in this program. Ray Train starts all other workers. A slow import delays the
work, so the top of this module imports only what every program needs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

from services.trainer.assignment import Assignment
from services.trainer.oom import oom_kills, report_oom

_PR_SET_PDEATHSIG = 1  # of prctl(2): ends the child with its parent


def main() -> None:
    """Run the assignment that the command line describes. Exits non-zero if a worker failed."""
    assignment, kills = Assignment.read(), oom_kills()
    code = _in_child(lambda: _run(assignment))
    if code and oom_kills() > kills:
        report_oom(assignment)
    sys.exit(128 - code if code < 0 else code)


def _in_child(run: Callable[[], None]) -> int:
    """Call `run` in a child process. Return its exit code, or the negative number of the signal that killed the child.

    If memory runs out, the kernel kills the child, which uses the most memory. This process can then report the cause.
    """
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        run()
        sys.exit()
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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
