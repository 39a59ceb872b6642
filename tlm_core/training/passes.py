"""Forward and backward passes of a step. `RowPasses` works on any device; `StreamPasses` is faster on a GPU."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from tlm_core.training.device import native_bf16
from tlm_core.training.memory import MICRO_ROWS, rows_at_once
from tlm_core.training.model import TaskModel
from tlm_core.training.objective import Workers, accumulate_gradient
from tlm_core.training.optim import Buffers, FlatOptimizer
from tlm_core.training.prepared import Batch

if TYPE_CHECKING:
    from tlm_core.training.stream import Part
    from tlm_core.training.stream_passes import StreamPasses

_log = logging.getLogger(__name__)

# Variable-length attention has kernels for heads of at most this size, in multiples of 8.
LARGEST_HEAD, HEAD_MULTIPLE = 256, 8


@dataclass(frozen=True)
class Loaded:
    """A batch, prepared for micro-batches of `rows` rows. If memory ran out during the preparation, `rows` is 0.

    parts: the micro-batches of `StreamPasses`, on the device after the event `ready`; () for `RowPasses`. flops: FLOPs
    of the matrix products in both passes over the parts; None: each worker has an equal share of the step's FLOPs.
    """

    batch: Batch
    rows: int
    parts: tuple[Part, ...] = ()
    class_weights: Tensor | None = None
    ready: torch.cuda.Event | None = None
    flops: float | None = None


def kinds(batch: Batch) -> tuple[bool, bool]:
    """Return whether the batch trains masked language modeling, and whether it trains the task."""
    return batch.mlm_weight > 0, batch.task_weight > 0


# A step: (batch, controls on the device) → values on the device, or None if memory ran out.
Compute = Callable[[Loaded, Tensor], Tensor | None]


@dataclass(frozen=True)
class RowPasses:
    """Passes over packed rows, on any device. memory: number of rows → bytes that training needs; None: no estimate.

    ahead: number of batches to load in advance. late: 0 if the loop reads the losses of a step before the next step
    starts; 1 if the loop reads them a step later.
    """

    model: TaskModel
    workers: Workers
    precision: str
    device: torch.device
    memory: Callable[[int], int] | None = None
    ahead: int = 0
    late: int = 0

    def first_rows(self, sample: Callable[[], Batch]) -> int:  # noqa: ARG002 - `StreamPasses` needs it
        """Return how many rows of a micro-batch fit into this worker's memory. sample: returns a batch to try."""
        if self.memory is None:
            return MICRO_ROWS
        return rows_at_once(self.device.type, self.workers.size, MICRO_ROWS, self.memory)

    def load(self, batch: Batch, rows: int) -> Loaded:
        """Return the batch, prepared for micro-batches of `rows` rows."""
        return Loaded(batch, rows)

    def gradient(self, loaded: Loaded) -> Tensor:
        """Add the batch's gradient to the gradients of the parameters. Return the [mlm, task] loss sums.

        Raises RuntimeError if memory runs out.
        """
        return accumulate_gradient(self.model, loaded.batch, self.workers, loaded.rows, self.precision, self.device)

    def reduce(self, batch: Batch, buffers: Buffers) -> None:  # noqa: ARG002 - `StreamPasses` needs it
        """Sum the gradient and the totals in `buffers` over all workers."""
        self.workers.sum(buffers.gradient)

    def run(self, compute: Compute, loaded: Loaded, controls: Tensor) -> Tensor | None:
        """Return `compute(loaded, controls)`. controls: [rate, stop, shrunk]."""
        return compute(loaded, controls)


Passes: TypeAlias = "RowPasses | StreamPasses"


def gpu_passes(
    model: TaskModel,
    optimizer: FlatOptimizer,
    workers: Workers,
    device: torch.device,
    precision: str,
    *,
    loss: str,
    mask_rate: float = 0.0,
    compiled: bool = False,
) -> StreamPasses | None:
    """Return `StreamPasses`, or None if device, precision or size of the attention heads is not supported."""
    head = model.shape.head_size
    fits = head <= LARGEST_HEAD and head % HEAD_MULTIPLE == 0
    if precision != "bf16" or not fits or not native_bf16(device):
        return None
    if compiled and not c_compiler():
        _log.warning("No C compiler is installed, so the joint stage is slower. Install gcc on the workers.")
        compiled = False
    # A local import, because the module imports PyTorch's compiler, which takes seconds.
    from tlm_core.training.stream_passes import StreamPasses

    return StreamPasses(model, optimizer, workers, device, loss, mask_rate, compiled=compiled)


def c_compiler() -> str | None:
    """Return the C compiler that Triton would call, or None."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
