"""Read the memory of a process. A separate module, so that measured processes import nothing else."""

from __future__ import annotations

import re
from pathlib import Path


def memory_bytes(pid: int | str = "self", field: str = "VmRSS") -> int:
    """Return the resident memory of a process (VmRSS), or its peak (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])  # type: ignore[index]


def peak_bytes() -> int:
    """Return the peak memory of this process. (`ru_maxrss` includes the memory of its parent at the start.)"""
    return memory_bytes(field="VmHWM")
