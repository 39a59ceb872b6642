"""Processes of this container that the kernel killed because their memory ran out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

# Of cgroup v2 and v1. In a container, the root of the hierarchy is the container's own group.
_CGROUP = Path("/sys/fs/cgroup")
_COUNTERS = ("memory.events", "memory/memory.oom_control")


def oom_kills(root: Path = _CGROUP) -> int:
    """Return how often the kernel has killed a process of this container, or 0 where it does not count."""
    for name in _COUNTERS:
        with suppress(OSError):
            for line in (root / name).read_text(encoding="ascii").splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return 0
