"""Conversion of weights between our names and those of the stock classes of `transformers`.

Some stock classes store query, key, and value separately. We store them as one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tlm_core.errors import InvalidRecipe
from tlm_core.training.architectures import ARCHITECTURES, Shape, architecture_of
from tlm_core.training.architectures.base import each_layer

_POSITIONS = "encoder.positions.weight"


def _qkv(shape: Shape) -> Iterator[tuple[str, list[str]]]:
    """Yield our name of each query-key-value parameter, with the stock names of its query, key and value."""
    pattern = architecture_of(shape).qkv_name
    for i in range(shape.layers if pattern else 0):
        stock = [str(pattern).format(i=i, part=part) for part in ("query", "key", "value")]
        for kind in ("weight", "bias"):
            yield f"encoder.layers.{i}.attention.qkv.{kind}", [f"{name}.{kind}" for name in stock]


def to_stock(weights: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Return the weights of encoder and task head under the names of the stock sequence classifier."""
    names = architecture_of(shape).stock_names(shape)
    stock = {theirs: weights[ours].contiguous() for ours, theirs in names.items()}
    for ours, parts in _qkv(shape):
        for theirs, part in zip(parts, weights[ours].chunk(3), strict=True):
            stock[theirs] = part.contiguous()
    if shape.skipped:
        positions = stock[names[_POSITIONS]]
        stock[names[_POSITIONS]] = torch.cat((positions.new_zeros(shape.skipped, shape.hidden), positions))
    return stock


def from_stock(stock: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Return a published model's float32 weights by our names: the encoder and, if present, the vocabulary head.

    Raises InvalidRecipe if a weight of the encoder is missing.
    """
    architecture = architecture_of(shape)
    named = {modern_name(name): tensor for name, tensor in stock.items()}
    names = architecture.stock_names(shape)
    weights = {ours: _lookup(named, theirs) for ours, theirs in names.items() if ours.startswith("encoder.")}
    for ours, parts in _qkv(shape):
        weights[ours] = torch.cat([_lookup(named, theirs) for theirs in parts])
    if shape.skipped:
        weights[_POSITIONS] = weights[_POSITIONS][shape.skipped :]
    vocabulary = each_layer(architecture.vocabulary_names, shape.layers)
    if all(theirs in named for theirs in vocabulary.values()):
        weights |= {ours: named[theirs] for ours, theirs in vocabulary.items()}
    return {name: tensor.float() for name, tensor in weights.items()}


def modern_name(name: str) -> str:
    """Return the current name of a weight. Early BERT files call a norm's weight and bias gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _lookup(named: Mapping[str, Tensor], name: str) -> Tensor:
    for candidate in (name, name.split(".", 1)[1]):  # The file of an encoder alone has names without the prefix.
        if candidate in named:
            return named[candidate]
    raise InvalidRecipe(
        f"The published model has no weight '{name}'. Choose a complete model of one of these architectures: "
        f"{', '.join(ARCHITECTURES)}."
    )
