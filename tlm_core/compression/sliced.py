"""A model from which masked heads and blocks are cut away, and the way back to full size with zeros in their place.

Stock classes hold layers of one size only, so a truly smaller model lives in our own modules and in its ONNX graph;
its stock form has the full size and zeros.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tlm_core.compression.masks import Mask
from tlm_core.training.architectures import Shape, architecture_of
from tlm_core.training.flops import FORWARD_AND_BACKWARD
from tlm_core.training.model import Attention, Layer, TaskModel
from tlm_core.training.state import SHAPE, WEIGHTS, load_weights

MASK = "mask.json"


def sliced(model: TaskModel, mask: Mask) -> TaskModel:
    """A copy that holds only what the mask keeps; it answers as the masked model does.

    Raises InvalidRequest for a mask of another model.
    """
    mask.check(model.shape.layers, model.shape.heads)
    smaller = copy.deepcopy(model)
    layers = smaller.encoder.layers
    for number, (heads, block) in enumerate(zip(mask.heads, mask.blocks, strict=True)):
        layer = cast(Layer, layers[number])
        if not all(heads):
            _keep_heads(layer.attention, _indices(heads))
        if not block:
            layer.remove_feed_forward()
    return smaller


def _keep_heads(attention: Attention, heads: Tensor) -> None:
    """Remove all but these heads."""
    hidden = attention.out.out_features
    features = _features(heads, hidden // attention.heads)
    attention.heads = len(heads)
    attention.qkv = _linear(attention.qkv, rows=torch.cat([features + part * hidden for part in range(3)]))
    attention.out = _linear(attention.out, columns=features)


def widened(tensors: Mapping[str, Tensor], shape: Shape, mask: Mask) -> dict[str, Tensor]:
    """Weights of a sliced model at full size, zeros where the mask drops: `names.to_stock` takes them."""
    architecture, found = architecture_of(shape), dict(tensors)
    for number, (heads, block) in enumerate(zip(mask.heads, mask.blocks, strict=True)):
        name = f"encoder.layers.{number}"
        inner = _features(_indices(heads), shape.head_size)
        rows = torch.cat([inner + part * shape.hidden for part in range(3)])
        found[f"{name}.attention.qkv.weight"] = _scatter(tensors[f"{name}.attention.qkv.weight"], rows, 0, shape, 3)
        found[f"{name}.attention.out.weight"] = _scatter(tensors[f"{name}.attention.out.weight"], inner, 1, shape, 1)
        if architecture.biases:
            found[f"{name}.attention.qkv.bias"] = _scatter(tensors[f"{name}.attention.qkv.bias"], rows, 0, shape, 3)
        if not block:
            for part, (size, neutral) in architecture.feed_forward(shape).items():
                found[f"{name}.{part}"] = torch.full(size, neutral)
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
    architecture = architecture_of(shape)
    head = shape.head_size * (4 * shape.hidden + (3 if architecture.biases else 0))
    block = sum(math.prod(size) for size, _ in architecture.feed_forward(shape).values())
    gone = head * (shape.layers * shape.heads - mask.heads_left) + block * (shape.layers - mask.blocks_left)
    return {"full": full, "left": full - gone, "layers_full": layers_full, "layers_left": layers_full - gone}


def spared_flops(shape: Shape, mask: Mask, rows: int, length: int) -> float:
    """FLOPs of a training step over [rows, length] that the sliced model does not compute."""
    head = shape.head_size * (4 * shape.hidden + 2 * length)
    block = architecture_of(shape).feed_forward_matrices * shape.hidden * shape.intermediate
    gone = head * (shape.layers * shape.heads - mask.heads_left) + block * (shape.layers - mask.blocks_left)
    return FORWARD_AND_BACKWARD * 2.0 * rows * length * gone


def _indices(flags: tuple[bool, ...]) -> Tensor:
    return torch.tensor([number for number, flag in enumerate(flags) if flag], dtype=torch.int64)


def _features(heads: Tensor, size: int) -> Tensor:
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
