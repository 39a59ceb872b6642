"""How much each attention head and feed-forward block matters to the task (arXiv 2105.12002, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tlm_core.compression.gates import gated
from tlm_core.compression.masks import Importance
from tlm_core.training.memory import rows_at_once, training_bytes
from tlm_core.training.model import TaskModel, classifier_size
from tlm_core.training.objective import Workers, loss_sums, micro_batches, to_device
from tlm_core.training.prepared import Batch, Prepared, Split, task_batch

DOCUMENTS = 32


def importance(
    model: TaskModel,
    split: Split,
    prepared: Prepared,
    *,
    device: torch.device,
    as_published: bool = False,
    told: Callable[[int], None] = lambda _: None,
) -> Importance:
    """Mean over the split's texts of |dL/dgate|, for a gate of 1 on each head's and each block's output.

    L is one text's own loss, so the derivative is summed over that text's positions before its size is taken. Heads
    are divided by their layer's Euclidean norm, blocks by that over layers.
    as_published: as the authors' released code computes it, for comparison with their masks: the size is taken at
    every position, the loss is the batch's mean, and gradients are never zeroed, so that early batches weigh more.
    told: hears how many texts are done.
    """
    shape, training = model.shape, model.training
    heads, blocks = np.zeros((shape.layers, shape.heads)), np.zeros(shape.layers)
    running = (np.zeros_like(heads), np.zeros_like(blocks))
    model.eval()
    order = np.argsort(split.store.lengths, kind="stable") if not as_published else np.arange(len(split))
    batches = range(0, len(split), DOCUMENTS)
    rows = rows_at_once(device.type, 1, DOCUMENTS, partial(training_bytes, shape, classifier_size(model)))
    for begin in batches:
        batch = task_batch(split, order[begin : begin + DOCUMENTS], prepared)
        for part in micro_batches(batch, Workers(), rows):
            by_head, by_block = _derivatives(model, part, device)
            if as_published:
                for total, found in zip(running, (by_head, by_block), strict=True):
                    total += _sum(found.abs().sum(dim=(1, 2))) / batch.documents
            else:
                heads += _sum(_by_document(by_head, part, device)) / len(split)
                blocks += _sum(_by_document(by_block[..., None], part, device)[..., 0]) / len(split)
        if as_published:
            heads += running[0] / len(batches)
            blocks += running[1] / len(batches)
        told(min(begin + DOCUMENTS, len(split)))
    model.train(training)
    return Importance(_unit(heads), _unit(blocks[None])[0])


def _derivatives(model: TaskModel, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """dL/dgate at every position, [layers, R, L, heads] and [layers, R, L]; documents do not see each other."""
    size = batch.rows.tokens.shape
    layers, heads = model.shape.layers, model.shape.heads
    head_gates = [torch.ones(*size, heads, device=device, requires_grad=True) for _ in range(layers)]
    block_gates = [torch.ones(size, device=device, requires_grad=True) for _ in range(layers)]
    with gated(model, head_gates, block_gates):
        _, loss = loss_sums(model, batch, device)
    found = torch.autograd.grad(loss, [*head_gates, *block_gates])
    return torch.stack(found[:layers]), torch.stack(found[layers:])


def _by_document(derivatives: Tensor, batch: Batch, device: torch.device) -> Tensor:
    """Sizes of each document's own sum, added up: [layers, R, L, n] → [layers, n]."""
    segments = to_device(batch.rows.segments, device)
    row, segment = to_device(batch.rows.doc_row, device), to_device(batch.rows.doc_segment, device)
    member = (segments[row] == segment[:, None]).to(derivatives.dtype)
    return torch.einsum("dp,ldpn->ldn", member, derivatives[:, row]).abs().sum(dim=1)


def _sum(values: Tensor) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = values.double().cpu().numpy()
    return found


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each row divided by its Euclidean norm; a row of zeros stays."""
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)
