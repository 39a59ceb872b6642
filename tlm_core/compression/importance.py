"""Importance of attention heads and feed-forward blocks, and gates on both (arXiv 2105.12002, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tlm_core.compression.masks import Importance, Mask
from tlm_core.pulse import PULSE
from tlm_core.training.memory import rows_at_once, training_bytes
from tlm_core.training.model import TaskModel, classifier_size
from tlm_core.training.objective import Workers, loss_sums, micro_batches, to_device
from tlm_core.training.prepared import Batch, Prepared, Split, task_batch

DOCUMENTS = 32


@contextmanager
def gated(model: TaskModel, heads: Sequence[Tensor], blocks: Sequence[Tensor]) -> Iterator[None]:
    """Inside the `with` statement, multiply each head's context and each feed-forward block's output by its gate.

    heads: one tensor for each layer, which broadcasts to [R, L, heads], for R rows of L tokens. blocks: one tensor for
    each layer, which broadcasts to [R, L].
    As in arXiv 2105.12002, a head's gate applies before the output projection, and a block's gate after its last bias.
    """
    hooks = []
    for layer, head_gate, block_gate in zip(model.encoder.layers, heads, blocks, strict=True):
        hooks.append(layer.attention.out.register_forward_pre_hook(partial(_scale_heads, head_gate)))
        hooks.append(layer.mlp_out.register_forward_hook(partial(_scale_block, block_gate)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _scale_heads(gate: Tensor, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    (context,) = inputs
    by_head = context.view(*context.shape[:2], gate.shape[-1], -1)
    return ((by_head * gate.to(by_head.dtype)[..., None]).flatten(2),)


def _scale_block(gate: Tensor, _: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
    return output * gate.to(output.dtype)[..., None]


def mask_gates(mask: Mask, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gates of heads and of blocks for `gated`: 0 for each head or block that the mask removes, else 1."""
    heads = [torch.tensor(row, dtype=torch.float32, device=device) for row in mask.heads]
    return heads, [torch.tensor([block], dtype=torch.float32, device=device) for block in mask.blocks]


@PULSE.pace(steady=True)
def importance(
    model: TaskModel,
    split: Split,
    prepared: Prepared,
    *,
    device: torch.device,
    as_published: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Importance:
    """Return the importance of each head and each block: the mean over the split's texts of |dL/dgate| at gate 1.

    L is the loss of one text. The absolute value is that of the derivative's sum over the positions of the text.
    Of a text with several windows, only the window of epoch 0 counts (`Split.turns`).
    Importances are normalized to the Euclidean norm 1: those of the heads of each layer, and those of all blocks.
    as_published: compute as the authors' released code does, to compare with their masks. That code takes the
    absolute value at every position, and it uses the mean loss of the batch. It never zeroes gradients, so early
    batches weigh more. progress: called with the number of processed texts.
    """
    shape, training = model.shape, model.training
    heads, blocks = np.zeros((shape.layers, shape.heads)), np.zeros(shape.layers)
    running = (np.zeros_like(heads), np.zeros_like(blocks))
    model.eval()
    order = split.turns(np.arange(len(split)), 0)
    if not as_published:
        order = order[np.argsort(split.store.lengths[order], kind="stable")]
    batches = range(0, len(split), DOCUMENTS)
    rows = rows_at_once(device.type, 1, DOCUMENTS, partial(training_bytes, shape, classifier_size(model)))
    for begin in batches:
        batch = task_batch(split, order[begin : begin + DOCUMENTS], prepared)
        for part in micro_batches(batch, Workers(), rows):
            by_head, by_block = _derivatives(model, part, device)
            if as_published:
                for total, derivatives in zip(running, (by_head, by_block), strict=True):
                    total += _array(derivatives.abs().sum(dim=(1, 2))) / batch.documents
            else:
                heads += _array(_by_document(by_head, part, device)) / len(split)
                blocks += _array(_by_document(by_block[..., None], part, device)[..., 0]) / len(split)
        if as_published:
            heads += running[0] / len(batches)
            blocks += running[1] / len(batches)
        progress(min(begin + DOCUMENTS, len(split)))
        PULSE.warm_up()
    model.train(training)
    return Importance(_unit(heads), _unit(blocks[None])[0])


def _derivatives(model: TaskModel, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return dL/dgate at every position: of the heads, [layers, R, L, heads], and of the blocks, [layers, R, L]."""
    size = batch.rows.tokens.shape
    layers, heads = model.shape.layers, model.shape.heads
    head_gates = [torch.ones(*size, heads, device=device, requires_grad=True) for _ in range(layers)]
    block_gates = [torch.ones(size, device=device, requires_grad=True) for _ in range(layers)]
    with gated(model, head_gates, block_gates):
        _, loss, _ = loss_sums(model, batch, device)
    derivatives = torch.autograd.grad(loss, [*head_gates, *block_gates])
    return torch.stack(derivatives[:layers]), torch.stack(derivatives[layers:])


def _by_document(derivatives: Tensor, batch: Batch, device: torch.device) -> Tensor:
    """Return the sum over documents of |sum of `derivatives` [layers, R, L, n] over the document|, [layers, n]."""
    segments = to_device(batch.rows.segments, device)
    row, segment = to_device(batch.rows.doc_row, device), to_device(batch.rows.doc_segment, device)
    member = (segments[row] == segment[:, None]).to(derivatives.dtype)
    return torch.einsum("dp,ldpn->ldn", member, derivatives[:, row]).abs().sum(dim=1)


def _array(values: Tensor) -> npt.NDArray[np.float64]:
    return values.double().cpu().numpy()


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Divide each row by its Euclidean norm. Rows of zeros do not change."""
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)
