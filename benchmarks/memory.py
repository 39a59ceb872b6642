"""Read the peak memory of a process. A separate module, so that measured processes import nothing else."""

from __future__ import annotations

import re
from pathlib import Path


def peak_bytes() -> int:
    """Return the peak memory of this process. (`ru_maxrss` includes the memory of its parent at the start.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]
