"""Memory that training takes, counted from shapes, and how many rows of a batch it holds at once."""

from __future__ import annotations

import os
from pathlib import Path

from tlm_core.training.flops import Sizes

# Rows held at once where memory allows.
MICRO_ROWS = 64

_BYTES = 4
_LIBRARIES = 700_000_000
# Left for what is not counted: the texts of a batch, a checkpoint's copy on its way to the storage, the allocator.
_USABLE = 0.8
# Where a container's limit stands, of either kind of control groups.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def training_bytes(shape: Sizes, parameters: int, rows: int) -> int:
    """Weights, gradient, two moments and the best weights so far, and both passes over `rows` rows in float32.

    Measured on the CPU: within 15 % for encoders of 3 to 6 layers, 192 to 384 wide. The libraries are not in it.
    """
    gates = 2 if shape.rotary else 1
    # What forward keeps of a position in a layer; at its peak the backward pass holds as much again.
    kept = 8 * shape.hidden + (gates + 1) * shape.intermediate + 3 * shape.heads * shape.max_length
    return _BYTES * (5 * parameters + 2 * rows * shape.max_length * shape.layers * kept)


def fitting_rows(shape: Sizes, parameters: int, limit: int) -> int:
    """The most rows, at most MICRO_ROWS and halved from there, that `limit` bytes hold; 1 where not even one fits."""
    rows = MICRO_ROWS
    while rows > 1 and _LIBRARIES + training_bytes(shape, parameters, rows) > _USABLE * limit:
        rows //= 2
    return rows


def memory_limit() -> int:
    """Bytes that this process may have: its container's limit, or the machine's memory where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _LIMITS):
        if path.exists() and (told := path.read_text(encoding="ascii").strip()).isdigit():
            found.append(int(told))
    return min(found)
