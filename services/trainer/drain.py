"""Run `python -m services.trainer.drain` before a worker's container stops.

It sends SIGTERM to the training workers of this machine and waits until they have ended, at a checkpoint. Ray itself
ends its workers without a warning.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from services.trainer.cluster import PROGRAM

_PATIENCE_SECONDS = 110.0
_SCRATCH = "TLM_TRAINER_SCRATCH"
_RAY_TRAIN = b"ray::RayTrainWorker"  # begins the titles of the workers that Ray Train started


def worker_processes(proc: Path = Path("/proc")) -> list[int]:
    """Return the ids of the training processes of this machine that use the scratch folder of this process."""
    pids, scratch = [], f"{_SCRATCH}={os.environ.get(_SCRATCH, '')}".encode()
    for command in proc.glob("[0-9]*/cmdline"):
        with suppress(OSError):  # It has ended meanwhile.
            line = command.read_bytes()
            # Not the shell in which Ray runs a program: it would end at once, and Ray would then kill the program.
            is_worker = PROGRAM.encode() in line.split(b"\0") or line.startswith(_RAY_TRAIN)
            # A machine may run several installations of the service.
            if is_worker and scratch in command.with_name("environ").read_bytes().split(b"\0"):
                pids.append(int(command.parent.name))
    return pids


def main() -> None:
    """Send SIGTERM to the workers and wait until they have ended, for at most _PATIENCE_SECONDS."""
    for pid in worker_processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while worker_processes() and time.monotonic() < deadline:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
