"""Read the memory of a process. This module is separate, so that measured processes import nothing else."""

from __future__ import annotations

import re
from pathlib import Path


def memory_bytes(pid: int | str = "self", field: str = "VmRSS") -> int:
    """Return the resident memory of a process in bytes. field: `VmRSS` for the current value, `VmHWM` for the peak."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])  # type: ignore[index]


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes. `ru_maxrss` would include memory of the parent process."""
    return memory_bytes(field="VmHWM")
