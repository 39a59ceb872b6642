"""Start and end child processes so that none outlives the stack."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

# Each process of a stack inherits these environment variables: the data folder, the run of the stack, and the part.
FOLDER_MARK = "TLM_STACK_FOLDER"
RUN_MARK = "TLM_STACK_RUN"
PART_MARK = "TLM_STACK_PART"
_PR_SET_PDEATHSIG = 1

Marks = Mapping[str, str]  # name → value of an environment variable


def free_ports(count: int) -> list[int]:
    """Return distinct free ports of the loopback address."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def port_is_free(port: int) -> bool:
    """Return whether a server can listen on the loopback port."""
    with socket.socket() as probe:
        # Servers set this option too, so a port with connections in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path, death_signal: int
) -> subprocess.Popen[bytes]:
    """Start `command` in a new session and append its output to `log`.

    death_signal: the signal that the child receives when this process dies. Call this function only from the main
    thread: Linux sends the signal when the thread that started the child ends.
    """
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def set_death_signal() -> None:
        if hasattr(libc, "prctl"):
            libc.prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before prctl

    with open(log, "ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=set_death_signal,
        )


def list_processes(marks: Marks) -> list[int]:
    """Return the pids of this user's processes whose environment has all `marks`, except this process and zombies."""
    variables = {f"{name}={value}".encode() for name, value in marks.items()}
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # the process has ended or belongs to another user
            continue
        if variables.issubset(environment) and int(entry.name) != os.getpid():
            pids.append(int(entry.name))
    return pids


def kill_processes(marks: Marks, *, grace_seconds: float = 0.0) -> list[int]:
    """Kill the processes with all `marks` that do not end within the grace period, and return their pids."""
    deadline = time.monotonic() + grace_seconds
    while (pids := list_processes(marks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return pids


@contextmanager
def cleaner(run: str, *, grace_seconds: float = 5.0) -> Iterator[None]:
    """Run a helper. When this process ends, even by SIGKILL, the helper kills all processes whose RUN_MARK is `run`.

    The death signal reaches only the parts. Children of the parts, such as Ray's workers, could continue to run.
    """
    command = [sys.executable, "-m", "tlm_client.stack.processes", run, str(grace_seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield


if __name__ == "__main__":
    # The supervisor writes nothing to the pipe. `read` returns when the supervisor closes the pipe or dies.
    sys.stdin.buffer.read()
    kill_processes({RUN_MARK: sys.argv[1]}, grace_seconds=float(sys.argv[2]))
