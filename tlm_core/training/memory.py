"""Memory that training and prediction take, counted from shapes, and how many rows of a batch it holds at once."""

from __future__ import annotations

import os
from collections.abc import Callable
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


def training_bytes(shape: Sizes, parameters: int, rows: int, masked: float = 0.0) -> int:
    """Weights, gradient, two moments and the best weights so far, and both passes over `rows` rows in float32.

    masked: share of the tokens that are masked. Measured on the CPU: within 15 % for encoders of 3 to 6 layers, 192 to
    384 wide. The libraries are not in it.
    """
    forward = shape.layers * _layer(shape, 3 * shape.heads)
    # At its peak the backward pass holds as much again. Before it, and gone by then, the vocabulary's loss holds an
    # exponential for each masked token and each of the vocabulary.
    position = max(2.0 * forward, forward + masked * shape.vocab)
    return int(_BYTES * (5 * parameters + rows * shape.max_length * position))


def predicting_bytes(shape: Sizes, parameters: int, rows: int) -> int:
    """The same for validation between steps: of the forward pass only one layer is held at a time.

    So memory that holds training with some rows holds validation with twice as many, which is then not cut.
    """
    return _BYTES * (5 * parameters + rows * shape.max_length * _layer(shape, 2 * shape.heads + 1))


def _layer(shape: Sizes, maps: int) -> int:
    """Floats of a position in a layer, with so many attention maps or masks of its row."""
    gates = 2 if shape.rotary else 1
    return 8 * shape.hidden + (gates + 1) * shape.intermediate + maps * shape.max_length


def rows_at_once(device: str, workers: int, most: int, count: Callable[[int], int]) -> int:
    """Rows to hold at once, at most `most` and halved from there; 1 where not even one fits.

    device: its kind; count: rows → bytes. A GPU refuses what it cannot hold; a CPU's system ends the process instead,
    so there it is counted beforehand, as if all workers were on this machine.
    """
    if device != "cpu":
        return most
    limit = memory_limit() // workers
    while most > 1 and _LIBRARIES + count(most) > _USABLE * limit:
        most //= 2
    return most


def memory_limit() -> int:
    """Bytes that this process may have: its container's limit, or the machine's memory where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _LIMITS):
        if path.exists() and (told := path.read_text(encoding="ascii").strip()).isdigit():
            found.append(int(told))
    return min(found)
