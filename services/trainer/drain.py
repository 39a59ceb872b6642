"""Run `python -m services.trainer.drain --node` before a worker's container stops.

This command sends SIGTERM to the training workers of this machine, and waits until they have written a checkpoint and
ended. Ray itself ends its workers without a warning. With `--node`, the command first makes Ray place no more workers
on this machine, so that the next attempt starts elsewhere.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from services.trainer.cluster import PROGRAM

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 110.0
_NODE_SECONDS = 15.0  # for Ray's answer
_REASON = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the machine stops")
_SCRATCH = "TLM_TRAINER_SCRATCH"
_RAY_TRAIN = "ray::RayTrainWorker"  # begins the titles of the workers that Ray Train started


def worker_processes(proc: Path = Path("/proc")) -> list[int]:
    """Return the ids of the training processes of this machine that use the scratch folder of this process."""
    pids, scratch = [], f"{_SCRATCH}={os.environ.get(_SCRATCH, '')}".encode()
    for process, words in _processes(proc):
        # Skip the shell in which Ray runs a program: if the shell ended, Ray would kill the program.
        is_worker = PROGRAM in words or words[0].startswith(_RAY_TRAIN)
        with suppress(OSError):  # The process has ended meanwhile.
            # A machine may run several installations of the service.
            if is_worker and scratch in (process / "environ").read_bytes().split(b"\0"):
                pids.append(int(process.name))
    return pids


def ray_nodes(proc: Path = Path("/proc")) -> list[tuple[str, str]]:
    """Return (address of the cluster, id of the node) for each Ray node that runs on this machine."""
    nodes = []
    for _, (name, *options) in _processes(proc):
        if name.endswith("/raylet"):
            values = dict(option.split("=", 1) for option in options if "=" in option)
            nodes.append((values.get("--gcs-address", ""), values.get("--node_id", "")))
    return nodes


def _processes(proc: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folder in `proc` and the words of the command line, for each process of this machine."""
    for command in proc.glob("[0-9]*/cmdline"):
        with suppress(OSError):  # The process has ended meanwhile.
            yield command.parent, command.read_text("utf-8", "replace").split("\0")


def drain_nodes(nodes: Sequence[tuple[str, str]]) -> None:
    """Make Ray place no more workers on `nodes`, a result of `ray_nodes`. Logs a warning if Ray refuses."""
    for address, node in nodes:
        command = ["ray", "drain-node", "--address", address, "--node-id", node, *_REASON]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_NODE_SECONDS)
        except subprocess.CalledProcessError as error:
            log.warning("Ray may still place workers here: %s", error.stderr.strip())
        except (OSError, subprocess.TimeoutExpired) as error:
            log.warning("Ray may still place workers here: %s", error)


def main() -> None:
    """Send SIGTERM to the training workers of this machine, and wait until they have ended, for at most 110 s."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.drain", description=main.__doc__)
    parser.add_argument("--node", action="store_true", help="make Ray place no more workers on this machine")
    options = parser.parse_args()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    if options.node:
        drain_nodes(ray_nodes())
    for pid in worker_processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    while worker_processes() and time.monotonic() < deadline:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
