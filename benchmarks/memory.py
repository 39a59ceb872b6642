"""How much memory a process has held. A module of its own, so that what is measured imports nothing else for it."""

from __future__ import annotations

import re
from pathlib import Path


def peak_bytes() -> int:
    """Most memory that this process has held. (`ru_maxrss` would count what its parent held when it was started.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]
