"""Gates on the outputs of attention heads and feed-forward blocks, without a change to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tlm_core.compression.masks import Mask
from tlm_core.training.model import TaskModel


@contextmanager
def gated(model: TaskModel, heads: Sequence[Tensor], blocks: Sequence[Tensor]) -> Iterator[None]:
    """Multiply each head's context by heads[layer] and each block's output by blocks[layer] while this is open.

    heads: for each layer a tensor that broadcasts to [R, L, heads]; blocks: one that broadcasts to [R, L]. The gate
    of a head stands before the matrix that mixes heads, that of a block after its last bias, as in the paper.
    """
    hooks = []
    for layer, head_gate, block_gate in zip(model.encoder.layers, heads, blocks, strict=True):
        hooks.append(layer.attention.out.register_forward_pre_hook(_on_heads(head_gate)))
        hooks.append(layer.mlp_out.register_forward_hook(_on_block(block_gate)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _on_heads(gate: Tensor) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (context,) = inputs
        parted = context.view(*context.shape[:2], gate.shape[-1], -1)
        return ((parted * gate.to(parted.dtype)[..., None]).flatten(2),)

    return hook


def _on_block(gate: Tensor) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    def hook(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        return output * gate.to(output.dtype)[..., None]

    return hook


@contextmanager
def masked(model: TaskModel, mask: Mask) -> Iterator[None]:
    """The model computes without what the mask drops while this is open. Raises InvalidRequest for another's mask."""
    mask.check(model.shape.layers, model.shape.heads)
    device = next(model.parameters()).device
    heads = [torch.tensor(row, dtype=torch.float32, device=device) for row in mask.heads]
    blocks = [torch.tensor([kept], dtype=torch.float32, device=device) for kept in mask.blocks]
    with gated(model, heads, blocks):
        yield
