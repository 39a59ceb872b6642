"""Starting and ending child processes so that none outlives the stack."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# Every process of a stack carries these in its environment, and so do its own children, whatever session they are in:
# the data folder, which run of the stack it is, and of which part.
FOLDER_MARK = "TLM_STACK_FOLDER"
RUN_MARK = "TLM_STACK_RUN"
PART_MARK = "TLM_STACK_PART"
_PR_SET_PDEATHSIG = 1

Marks = Mapping[str, str]


def free_ports(count: int) -> list[int]:
    """Distinct ports of the loopback address that are free now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server will do it: a port whose last connections still fade away can be taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path, orphaned: int
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own; its output is appended to `log`.

    orphaned: the signal it gets if this process dies without stopping it. Call it from the main thread only:
    Linux sends that signal when the *thread* ends that has started the child.
    """
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def leash() -> None:
        if hasattr(libc, "prctl"):
            libc.prctl(_PR_SET_PDEATHSIG, orphaned)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before the leash was on

    with open(log, "ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=leash,
        )


def marked(marks: Marks) -> list[int]:
    """Pids of this user's processes that carry all of `marks`, this one and zombies left out."""
    wanted = {f"{name}={value}".encode() for name, value in marks.items()}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # gone in the meantime, or another user's
            continue
        if wanted.issubset(variables) and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def sweep(marks: Marks, *, patience: float = 0.0) -> list[int]:
    """Kill the processes that carry `marks`, if they do not end by themselves within `patience` seconds.

    Returns the pids killed.
    """
    deadline = time.monotonic() + patience
    while (left := marked(marks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return left


@contextmanager
def janitor(run: str, *, patience: float = 5.0) -> Iterator[None]:
    """Within it, a process of its own waits for the end of this one and then sweeps the run, even after SIGKILL.

    The leash of each part tells it at once that the supervisor died; what the parts themselves have started (Ray's
    workers above all) may not notice for long. patience: seconds they are given.
    """
    command = [sys.executable, "-m", "tlm_client.stack.processes", run, str(patience)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield


def _wait_and_sweep(run: str, patience: float) -> None:
    # Nobody ever writes: the read ends when the supervisor has closed its end, or died.
    sys.stdin.buffer.read()
    sweep({RUN_MARK: run}, patience=patience)


if __name__ == "__main__":
    _wait_and_sweep(sys.argv[1], float(sys.argv[2]))
