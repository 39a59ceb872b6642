"""Starting and ending child processes so that none outlives the stack."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Every process of a stack carries these, and hands them to its own children: the folder, and which part it is of.
FOLDER_MARK = "TLM_STACK_FOLDER"
PART_MARK = "TLM_STACK_PART"
_PR_SET_PDEATHSIG = 1


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


def marked(folder: Path, part: str | None = None) -> list[int]:
    """Pids of this user's processes that belong to the stack of `folder` (and to `part` of it), zombies left out."""
    wanted = {f"{FOLDER_MARK}={folder}".encode()} | ({f"{PART_MARK}={part}".encode()} if part else set())
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # gone in the meantime, or another user's
            continue
        if wanted.issubset(variables) and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def sweep(folder: Path, part: str | None = None, *, patience: float = 0.0) -> list[int]:
    """Kill what is left of a stack, or of one part of it, after `patience` seconds. Returns the pids killed."""
    deadline = time.monotonic() + patience
    while (left := marked(folder, part)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return left
