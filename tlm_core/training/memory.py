"""Estimates of the memory that training and prediction need, and settings of the memory allocator."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tlm_core.training.architectures import Shape, architecture_of

MICRO_ROWS = 64  # rows processed at once where memory allows

# Environment variables of a process that trains on a CPU. The process must start with them. Results do not depend on
# them. A test compares them with the Dockerfile.
ENVIRONMENT = {
    # While a thread waits, it uses a core. On a busy machine, another thread of the same step may need this core.
    "GOMP_SPINCOUNT": "5000",
    # Each step allocates large tensors. By default, the C library returns their memory to the kernel. The kernel then
    # provides zeroed pages again, which takes 7 % of a step.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    # A step reads hundreds of megabytes. On a virtual machine, address lookups of small pages take 10 % of the step.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

_BYTES = 4
_LIBRARIES = 700_000_000
# Share of the memory that estimates may reach. Estimates omit the batch's texts, a checkpoint's copy, the allocator.
_USABLE = 0.8
# Memory limit of a container, in either version of control groups.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def training_bytes(shape: Shape, parameters: int, rows: int, masked: float = 0.0) -> int:
    """Return the bytes that training in float32 needs if `rows` rows are processed at once, without the libraries.

    The result includes weights, gradient, moments, best weights so far, and both passes. On a CPU, it is within 15 % of
    measurements, for encoders of 3 to 6 layers that are 192 to 384 wide. masked: see `Joint.logits_per_token`.
    """
    forward = shape.layers * architecture_of(shape).layer_floats(shape, 3 * shape.heads)
    # At its peak, the backward pass needs as much memory again. Before the peak, the loss of the vocabulary needs one
    # exponential for each masked token and vocabulary entry.
    position = max(2.0 * forward, forward + masked * shape.vocab)
    return int(_BYTES * (5 * parameters + rows * shape.max_length * position))


def predicting_bytes(shape: Shape, parameters: int, rows: int) -> int:
    """Return the bytes that validation needs if `rows` rows are processed at once, without the libraries.

    The forward pass needs memory for one layer at a time. Memory to train with n rows suffices to validate with 2 n.
    """
    position = architecture_of(shape).layer_floats(shape, 2 * shape.heads + 1)
    return _BYTES * (5 * parameters + rows * shape.max_length * position)


def rows_at_once(device: str, workers: int, most: int, count: Callable[[int], int]) -> int:
    """Return how many rows to process at once: `most` on a GPU; on a CPU, `most` halved until the rows fit.

    A GPU raises an error when memory runs out, but on a CPU the kernel would kill the process. The estimate assumes
    that all workers share this machine. device: type of the device, such as `cpu`. count: number of rows → bytes that
    they need.
    """
    if device != "cpu":
        return most
    limit = memory_limit() // workers
    while most > 1 and _LIBRARIES + count(most) > _USABLE * limit:
        most //= 2
    return most


def largest_rows(peak: Callable[[int], int], held: int, limit: int, most: int) -> int:
    """Return how many rows to process at once on a GPU: 1, doubled while twice as many should fit, up to `most`.

    Most steps have 2^n rows, which micro-batches of another size would not divide evenly. peak: number of rows → peak
    of the used bytes, measured. held: used bytes without rows. limit: maximum of bytes.
    """
    rows = 1
    while rows < most and held + 2 * (peak(rows) - held) <= limit:
        rows = min(2 * rows, most)
    return rows


def memory_limit() -> int:
    """Return the bytes that this process may use: the smaller of its container's limit and the machine's memory."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _LIMITS):
        if path.exists() and (text := path.read_text(encoding="ascii").strip()).isdigit():
            limits.append(int(text))
    return min(limits)
