"""A model from which masked heads and blocks are cut away, and the way back to full size with zeros in their place.

Stock classes hold layers of one size only, so a truly smaller model lives in our own modules and in its ONNX graph;
its stock form has the full size and zeros.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tlm_core.compression.masks import Mask
from tlm_core.training.flops import FORWARD_AND_BACKWARD
from tlm_core.training.model import Attention, PostNormLayer, PreNormLayer, Shape, TaskModel, attend
from tlm_core.training.state import SHAPE, WEIGHTS, load_weights

MASK = "mask.json"


class SlicedAttention(nn.Module):
    """Self-attention with some heads of `whole` only."""

    def __init__(self, whole: Attention, kept: Tensor) -> None:
        super().__init__()
        hidden = whole.out.out_features
        size = hidden // whole.heads
        self.heads = len(kept)
        self.dropout = whole.dropout
        inner = _members(kept, size)
        self.qkv = _linear(whole.qkv, rows=torch.cat([inner + part * hidden for part in range(3)]))
        self.out = _linear(whole.out, columns=inner)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        y = attend(self.qkv(x), self.heads, mask, rotation, self.dropout if self.training else 0.0)
        out: Tensor = self.out(y)
        return out


class AttentionOnly(nn.Module):
    """A layer without its feed-forward block. The norm after it stays where the norm is no part of the block."""

    def __init__(self, whole: PreNormLayer | PostNormLayer) -> None:
        super().__init__()
        self.attention = whole.attention
        self.attention_norm = whole.attention_norm
        self.mlp_norm = whole.mlp_norm if isinstance(whole, PostNormLayer) else None
        self.dropout = whole.dropout

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.mlp_norm is not None:
            x = self.attention_norm(x + self.dropout(self.attention(x, mask, rotation)))  # type: ignore[misc]
            out: Tensor = self.mlp_norm(x)
            return out
        h = x if self.attention_norm is None else self.attention_norm(x)
        out = x + self.dropout(self.attention(h, mask, rotation))
        return out


def sliced(model: TaskModel, mask: Mask) -> TaskModel:
    """A copy that holds only what the mask keeps; it answers as the masked model does.

    Raises InvalidRequest for a mask of another model.
    """
    mask.check(model.shape.layers, model.shape.heads)
    smaller = copy.deepcopy(model)
    layers = smaller.encoder.layers
    for number, (heads, block) in enumerate(zip(mask.heads, mask.blocks, strict=True)):
        layer = cast(Any, layers[number])
        if not all(heads):
            layer.attention = SlicedAttention(layer.attention, _kept(heads))
        if not block:
            layers[number] = AttentionOnly(layer)
    return smaller


def widened(tensors: Mapping[str, Tensor], shape: Shape, mask: Mask) -> dict[str, Tensor]:
    """Weights of a sliced model at full size, zeros where the mask drops: `names.to_stock` takes them."""
    size, gates = shape.hidden // shape.heads, 2 if shape.rotary else 1
    found = dict(tensors)
    for number, (heads, block) in enumerate(zip(mask.heads, mask.blocks, strict=True)):
        name = f"encoder.layers.{number}"
        inner = _members(_kept(heads), size)
        rows = torch.cat([inner + part * shape.hidden for part in range(3)])
        found[f"{name}.attention.qkv.weight"] = _scatter(tensors[f"{name}.attention.qkv.weight"], rows, 0, shape, 3)
        found[f"{name}.attention.out.weight"] = _scatter(tensors[f"{name}.attention.out.weight"], inner, 1, shape, 1)
        if not shape.rotary:
            found[f"{name}.attention.qkv.bias"] = _scatter(tensors[f"{name}.attention.qkv.bias"], rows, 0, shape, 3)
        if not block:
            found[f"{name}.mlp_in.weight"] = torch.zeros(gates * shape.intermediate, shape.hidden)
            found[f"{name}.mlp_out.weight"] = torch.zeros(shape.hidden, shape.intermediate)
            if shape.rotary:
                found[f"{name}.mlp_norm.weight"] = torch.ones(shape.hidden)  # of no effect before zeros
            else:
                found[f"{name}.mlp_in.bias"] = torch.zeros(shape.intermediate)
                found[f"{name}.mlp_out.bias"] = torch.zeros(shape.hidden)
    return found


def load_sliced(folder: Path) -> tuple[TaskModel, Mask]:
    """The model that a ticket's finetuning wrote. Raises CorruptArtifact."""
    shape = Shape.from_dict(json.loads((folder / SHAPE).read_text(encoding="utf-8")))
    mask = Mask.from_dict(json.loads((folder / MASK).read_text(encoding="utf-8")))
    model = sliced(TaskModel(shape), mask)
    load_weights(model, load_file(folder / WEIGHTS), skip=("vocabulary.",))
    return model.eval(), mask


def parameters(shape: Shape, mask: Mask) -> dict[str, int]:
    """Parameters of the exported classifier: `full`, `left`, and of its layers alone `layers_full`, `layers_left`."""
    with torch.device("meta"):
        whole = TaskModel(shape)
    layers_full = sum(p.numel() for p in whole.encoder.layers.parameters())
    full = sum(p.numel() for name, p in whole.named_parameters() if not name.startswith("vocabulary."))
    size, per = shape.hidden // shape.heads, 4 * shape.hidden
    head = size * per + (0 if shape.rotary else 3 * size)
    gates = 2 if shape.rotary else 1
    block = (gates + 1) * shape.hidden * shape.intermediate
    block += shape.hidden if shape.rotary else shape.intermediate + shape.hidden
    gone = head * (shape.layers * shape.heads - mask.heads_left) + block * (shape.layers - mask.blocks_left)
    return {"full": full, "left": full - gone, "layers_full": layers_full, "layers_left": layers_full - gone}


def spared_flops(shape: Shape, mask: Mask, rows: int, length: int) -> float:
    """FLOPs of a training step over [rows, length] that the sliced model does not compute."""
    hidden, gates = shape.hidden, 2 if shape.rotary else 1
    size = hidden // shape.heads
    head = 4 * hidden * size + 2 * length * size
    block = (gates + 1) * hidden * shape.intermediate
    gone = head * (shape.layers * shape.heads - mask.heads_left) + block * (shape.layers - mask.blocks_left)
    return FORWARD_AND_BACKWARD * 2.0 * rows * length * gone


def _kept(flags: tuple[bool, ...]) -> Tensor:
    return torch.tensor([number for number, flag in enumerate(flags) if flag], dtype=torch.int64)


def _members(heads: Tensor, size: int) -> Tensor:
    """Places of the heads' features in a row of all heads."""
    return (heads[:, None] * size + torch.arange(size)).flatten()


def _linear(whole: nn.Linear, *, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """A linear map with some of the outputs or some of the inputs of `whole`."""
    weight, bias = whole.weight.detach(), whole.bias
    weight = weight[rows] if rows is not None else weight
    weight = weight[:, columns] if columns is not None else weight
    smaller = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device)
    with torch.no_grad():
        smaller.weight.copy_(weight)
        if bias is not None:
            smaller.bias.copy_(bias.detach()[rows] if rows is not None else bias.detach())
    return smaller


def _scatter(part: Tensor, places: Tensor, axis: int, shape: Shape, times: int) -> Tensor:
    size = list(part.shape)
    size[axis] = times * shape.hidden
    return torch.zeros(size).index_copy_(axis, places, part)
