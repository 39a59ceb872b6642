"""Memory that training and prediction need, how many rows fit at once, and settings of the memory allocator."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tlm_core.training.architectures import Shape, architecture_of

MICRO_ROWS = 64  # rows processed at once where memory allows

# Environment variables of a process that trains on a CPU, set before it starts. Results do not depend on them. A test
# compares them with the Dockerfile.
ENVIRONMENT = {
    # A waiting thread spins. If other processes are busy, a long spin takes a core from the thread that it waits for.
    "GOMP_SPINCOUNT": "5000",
    # Each step allocates large tensors. By default the C library returns their memory to the kernel, which provides it
    # again page by page and zeroed: 7 % of a step.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    # A step reads hundreds of megabytes. On a virtual machine, address lookups of small pages take a tenth of the step.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

_BYTES = 4
_LIBRARIES = 700_000_000
# The rest is for what the estimate leaves out: a batch's texts, the copy of a checkpoint, the allocator.
_USABLE = 0.8
# Memory limit of a container, in either version of control groups.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def training_bytes(shape: Shape, parameters: int, rows: int, masked: float = 0.0) -> int:
    """Return the bytes that training needs with `rows` rows in float32, without the libraries.

    They include weights, gradient, moments, the best weights so far, and both passes. masked: share of masked tokens.
    On a CPU the result is within 15 % of measurements for encoders of 3 to 6 layers, 192 to 384 wide.
    """
    forward = shape.layers * architecture_of(shape).layer_floats(shape, 3 * shape.heads)
    # At its peak the backward pass holds as much again. Before that, the vocabulary's loss holds one exponential for
    # each masked token and vocabulary entry.
    position = max(2.0 * forward, forward + masked * shape.vocab)
    return int(_BYTES * (5 * parameters + rows * shape.max_length * position))


def predicting_bytes(shape: Shape, parameters: int, rows: int) -> int:
    """Return the bytes of validation with `rows` rows. Its forward pass holds one layer at a time.

    Memory that suffices to train with some number of rows suffices to validate with twice as many.
    """
    position = architecture_of(shape).layer_floats(shape, 2 * shape.heads + 1)
    return _BYTES * (5 * parameters + rows * shape.max_length * position)


def rows_at_once(device: str, workers: int, most: int, count: Callable[[int], int]) -> int:
    """Return how many rows to process at once: `most`, halved until they fit, at least 1.

    device: type of the device, such as `cpu`. count: estimates the bytes for a number of rows. A GPU gets `most`,
    because it raises an error when memory runs out. On a CPU the kernel would kill the process, so the
    estimate decides. It assumes that all workers share this machine.
    """
    if device != "cpu":
        return most
    limit = memory_limit() // workers
    while most > 1 and _LIBRARIES + count(most) > _USABLE * limit:
        most //= 2
    return most


def largest_rows(peak: Callable[[int], int], held: int, limit: int, most: int) -> int:
    """Return how many rows to process at once on a GPU: 1, doubled while twice as many should fit, up to `most`.

    It tries only powers of two and `most`. In most steps, the number of rows is a power of two. Parts of another size
    would then leave the last part partly empty.
    peak: measures the bytes used with a number of rows. held: bytes used without rows. limit: the most bytes to use.
    """
    rows = 1
    while rows < most and held + 2 * (peak(rows) - held) <= limit:
        rows = min(2 * rows, most)
    return rows


def memory_limit() -> int:
    """Return the bytes that this process may use: the limit of its container, or the machine's memory if less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _LIMITS):
        if path.exists() and (text := path.read_text(encoding="ascii").strip()).isdigit():
            limits.append(int(text))
    return min(limits)
