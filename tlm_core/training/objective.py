"""Loss and gradient of one step, over this worker's share of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from tlm_core.errors import WorkerLost
from tlm_core.pulse import PULSE
from tlm_core.training import flops
from tlm_core.training.architectures import Shape
from tlm_core.training.device import autocast
from tlm_core.training.masking import NOT_MASKED
from tlm_core.training.model import TaskModel
from tlm_core.training.packing import Rows
from tlm_core.training.prepared import Batch

# Masked tokens are padded to a multiple of this number. Libraries cache a matrix kernel for each size, so many sizes
# would let memory grow.
MASKED_MULTIPLE = 64


@contextmanager
def connected() -> Iterator[None]:
    """Raise WorkerLost if a collective operation in the block fails: another worker died or takes too long."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        message = "A worker lost its connection to other workers. If this recurs, check the workers' network and logs."
        raise WorkerLost(message, details=str(error)) from error


@dataclass(frozen=True)
class Workers:
    """The process group: the share of this worker, and operations over all `size` workers."""

    rank: int = 0
    size: int = 1

    def share(self, n: int) -> tuple[int, int]:
        """Return the range [start, stop) of n items that this worker processes. All ranges have about the same size."""
        return n * self.rank // self.size, n * (self.rank + 1) // self.size

    @connected()
    def sum(self, tensor: Tensor) -> Tensor:
        """Replace the tensor with its sum over all workers, in place. Return the tensor."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    @connected()
    def start_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Start `sum`, and return a function that waits for the end of the sum. On a GPU, only the device waits."""
        work = torch.distributed.all_reduce(tensor, async_op=True)
        return connected()(work.wait)

    @connected()
    def first(self, tensor: Tensor) -> Tensor:
        """Replace the tensor with that of rank 0, in place. Return the tensor."""
        if self.size > 1:
            torch.distributed.broadcast(tensor, src=0)
        return tensor

    @connected()
    def least(self, value: int, device: torch.device) -> int:
        """Return the smallest value of all workers. Wait until all workers call this method."""
        if self.size == 1:
            return value
        smallest = torch.tensor(value, device=device)
        torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
        return int(smallest)


def micro_batches(batch: Batch, workers: Workers, rows: int) -> Iterator[Batch]:
    """Yield this worker's rows of the batch in micro-batches of at most `rows` rows."""
    own = own_rows(batch, workers)
    for begin in range(0, len(own.rows), rows):
        PULSE.advance()
        yield own.part(begin, min(begin + rows, len(own.rows)))


def own_rows(batch: Batch, workers: Workers) -> Batch:
    """Return the batch with only this worker's rows."""
    return batch.part(*workers.share(len(batch.rows))) if batch.step is None else batch


def step_flops(shape: Shape, batch: Batch) -> float:
    """Return the FLOPs of the matrix products in the forward and the backward pass over a batch, including padding."""
    masked = -(-batch.masked // MASKED_MULTIPLE) * MASKED_MULTIPLE if batch.mlm_weight else 0
    documents = batch.documents if batch.task_weight else 0
    products = flops.forward(shape, batch.size, batch.tokens.shape[1], masked, documents, batch.described)
    return flops.FORWARD_AND_BACKWARD * products


def needed_flops(shape: Shape, batch: Batch) -> float:
    """Return the FLOPs that the model needs for the step: no padding, and no attention across documents."""
    masked = batch.masked if batch.mlm_weight else 0
    documents = batch.documents if batch.task_weight else 0
    products = flops.products(shape, batch.real_tokens, batch.pairs, masked, documents, batch.described)
    return flops.FORWARD_AND_BACKWARD * products


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)


def encode(model: TaskModel, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the hidden states [R, L, hidden] and the segments [R, L] of the batch's rows."""
    rows = batch.rows
    segments = to_device(rows.segments, device)
    hidden = model.encoder(
        to_device(batch.tokens, device), segments, to_device(rows.positions, device), to_device(rows.types, device)
    )
    return hidden, segments


def pooled_logits(model: TaskModel, batch: Batch, hidden: Tensor, segments: Tensor) -> Tensor:
    """Return the label logits [D, labels] of the batch's whole documents."""
    device = hidden.device
    doc_row, doc_segment = to_device(batch.rows.doc_row, device), to_device(batch.rows.doc_segment, device)
    logits: Tensor = model.task(model.pool(hidden, segments, doc_row, doc_segment))
    return logits.float()


def _cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    return F.cross_entropy(logits, labels, weights, reduction="sum")


def _squared_error(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:  # noqa: ARG001 - see LOSSES
    return F.mse_loss(logits[:, 0], targets, reduction="sum")


# Summed loss of logits [D, outputs] against targets [D], by the name that a task type gives (`TaskType.loss`).
# The third argument holds the weights of the classes.
LOSSES: Mapping[str, Callable[..., Tensor]] = {"cross_entropy": _cross_entropy, "mse": _squared_error}


def loss_sums(model: TaskModel, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed losses of MLM (nats), of the task (nats, or squared errors), and of the bag of words (nats)."""
    hidden, segments = encode(model, batch, device)
    mlm = task = words = torch.zeros((), device=device)
    place = np.flatnonzero(batch.targets != NOT_MASKED)
    if batch.mlm_weight and len(place):
        padded = np.pad(place, (0, -len(place) % MASKED_MULTIPLE))
        targets = to_device(batch.targets.reshape(-1)[padded].clip(0), device)
        mlm = model.vocabulary.loss(hidden.flatten(0, 1)[to_device(padded, device)], targets, len(place))
    if batch.mlm_weight and batch.bag_of_words is not None and len(batch.rows):
        words = bag_of_words_sum(model, batch.rows, batch.bag_of_words, hidden, segments)
    if batch.task_weight and len(batch.labels):
        logits = pooled_logits(model, batch, hidden, segments)
        weights = None if batch.class_weights is None else to_device(batch.class_weights, device)
        task = LOSSES[batch.loss](logits, to_device(batch.labels, device), weights)
    return mlm, task, words


def bag_of_words_sum(
    model: TaskModel, rows: Rows, factors: npt.NDArray[np.float32], hidden: Tensor, segments: Tensor
) -> Tensor:
    """Return the summed bag-of-words loss: the mean vector of each text predicts the text's words (arXiv 2401.11248).

    The loss adds the topic of a text to the vector that the task head reads. factors: see `masking.bag_of_words`.
    """
    device, real = hidden.device, rows.segments > 0
    doc_row, doc_segment = (to_device(values, device) for values in rows.texts)
    text = to_device(rows.text_of_token, device)
    pooled = model.pool(hidden, segments, doc_row, doc_segment)
    tokens, used = to_device(rows.tokens[real], device), to_device(factors[real], device)
    return model.vocabulary.bag_of_words(pooled, text, tokens, used)


def accumulate_gradient(
    model: TaskModel, batch: Batch, workers: Workers, micro_rows: int, precision: str, device: torch.device
) -> Tensor:
    """Add the gradient of this worker's rows to the parameters. Return the [mlm, task] loss sums of these rows.

    The step's loss is mlm_weight * (mlm + words) / masked + task_weight * task / documents (paper section 3.2). `words`
    is the bag-of-words loss, or 0 without this loss. The divisors are those of the whole step, so the gradient of the
    step is the sum of all workers' gradients.
    """
    total = torch.zeros(2, device=device)
    for part in micro_batches(batch, workers, micro_rows):
        with autocast(precision, device):
            mlm, task, words = loss_sums(model, part, device)
        mlm_share, task_share = batch.shares
        loss = mlm_share * (mlm + words) + task_share * task
        if loss.requires_grad:
            loss.backward()
        total += torch.stack((mlm.detach(), task.detach()))
    return total
