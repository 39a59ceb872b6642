"""Models without the heads and blocks that a mask removes, and full-size weights with zeros for removed parts.

All layers of a stock `transformers` class have the same size, so stock weights have the full size. Our own modules
and the ONNX graph become smaller.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tlm_core.compression.masks import Mask
from tlm_core.json_files import read_json
from tlm_core.training.architectures import Shape, architecture_of
from tlm_core.training.flops import FORWARD_AND_BACKWARD
from tlm_core.training.model import Attention, TaskModel
from tlm_core.training.state import WEIGHTS, load_weights, read_shape

MASK = "mask.json"


def sliced(model: TaskModel, mask: Mask) -> TaskModel:
    """Return a copy of `model` without the heads and blocks that the mask removes.

    Its outputs are those of `model` with gates of 0 on these parts. Raises InvalidRequest if the mask does not fit.
    """
    mask.check(model.shape.layers, model.shape.heads)
    smaller = copy.deepcopy(model)
    for layer, heads, block in zip(smaller.encoder.layers, mask.heads, mask.blocks, strict=True):
        if not all(heads):
            _reduce_heads(layer.attention, _indices(heads))
        if not block:
            layer.remove_feed_forward()
    return smaller


def _reduce_heads(attention: Attention, heads: Tensor) -> None:
    """Remove all heads except those with the indices `heads`."""
    hidden = attention.out.out_features
    features = _features(heads, hidden // attention.heads)
    attention.heads = len(heads)
    attention.qkv = _linear(attention.qkv, rows=torch.cat([features + part * hidden for part in range(3)]))
    attention.out = _linear(attention.out, columns=features)


def widened(tensors: Mapping[str, Tensor], shape: Shape, mask: Mask) -> dict[str, Tensor]:
    """Return the weights of a sliced model at full size: zeros for removed parts, ones for norms of removed blocks."""
    architecture, full = architecture_of(shape), dict(tensors)
    for number, (heads, block) in enumerate(zip(mask.heads, mask.blocks, strict=True)):
        name = f"encoder.layers.{number}"
        inner = _features(_indices(heads), shape.head_size)
        rows = torch.cat([inner + part * shape.hidden for part in range(3)])
        full[f"{name}.attention.qkv.weight"] = _scatter(tensors[f"{name}.attention.qkv.weight"], rows, 0, shape, 3)
        full[f"{name}.attention.out.weight"] = _scatter(tensors[f"{name}.attention.out.weight"], inner, 1, shape, 1)
        if architecture.biases:
            full[f"{name}.attention.qkv.bias"] = _scatter(tensors[f"{name}.attention.qkv.bias"], rows, 0, shape, 3)
        if not block:
            for part, (size, neutral) in architecture.feed_forward(shape).items():
                full[f"{name}.{part}"] = torch.full(size, neutral)
    return full


def load_sliced(folder: Path) -> tuple[TaskModel, Mask]:
    """Return the model and the mask that the `ticket` stage wrote. Raises CorruptArtifact."""
    shape = read_shape(folder)
    mask = Mask.from_dict(read_json(folder / MASK))
    model = sliced(TaskModel(shape), mask)
    load_weights(model, load_file(folder / WEIGHTS), skip=("vocabulary.",))
    return model.eval(), mask


def parameters(shape: Shape, mask: Mask) -> dict[str, int]:
    """Return the number of parameters of the exported classifier before (`full`) and after pruning (`left`).

    `layers_full` and `layers_left` count only the layers, without embeddings and task head.
    """
    with torch.device("meta"):
        model = TaskModel(shape)
    layers_full = sum(p.numel() for p in model.encoder.layers.parameters())
    full = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("vocabulary."))
    architecture = architecture_of(shape)
    head = shape.head_size * (4 * shape.hidden + (3 if architecture.biases else 0))
    block = sum(math.prod(size) for size, _ in architecture.feed_forward(shape).values())
    removed = head * (shape.layers * shape.heads - mask.heads_left) + block * (shape.layers - mask.blocks_left)
    return {"full": full, "left": full - removed, "layers_full": layers_full, "layers_left": layers_full - removed}


def spared_flops(shape: Shape, mask: Mask, rows: int, length: int) -> float:
    """Return the FLOPs that the sliced model saves in a training step over a batch [rows, length]."""
    head = shape.head_size * (4 * shape.hidden + 2 * length)
    block = architecture_of(shape).feed_forward_matrices * shape.hidden * shape.intermediate
    removed = head * (shape.layers * shape.heads - mask.heads_left) + block * (shape.layers - mask.blocks_left)
    return FORWARD_AND_BACKWARD * 2.0 * rows * length * removed


def _indices(flags: tuple[bool, ...]) -> Tensor:
    return torch.tensor([number for number, flag in enumerate(flags) if flag], dtype=torch.int64)


def _features(heads: Tensor, size: int) -> Tensor:
    """Return the indices of the features of the heads numbered `heads`, [heads * size]. size: features of a head."""
    return (heads[:, None] * size + torch.arange(size)).flatten()


def _linear(full: nn.Linear, *, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """Return a linear map with only the outputs `rows` and the inputs `columns` of `full`. None: all."""
    weight, bias = full.weight.detach(), full.bias
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
