"""Encoder architectures by name. A new one is one file here and one entry in `ARCHITECTURES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlm_core.training.architectures.base import Architecture, Shape, Sizes
from tlm_core.training.architectures.bert import Bert, Roberta
from tlm_core.training.architectures.modernbert import ModernBert

__all__ = ["ARCHITECTURES", "Architecture", "Shape", "Sizes", "architecture_of", "scratch_shape"]

if TYPE_CHECKING:
    from tlm_core.training.recipe import Model

ARCHITECTURES: dict[str, Architecture] = {entry.name: entry for entry in (ModernBert(), Bert(), Roberta())}


def architecture_of(sizes: Shape | Sizes) -> Architecture:
    """Return the architecture of a shape."""
    return ARCHITECTURES[sizes.architecture]


def scratch_shape(model: Model, vocab: int, labels: int) -> Shape:
    """Return the shape for training from scratch by a recipe's model part."""
    return ARCHITECTURES[model.architecture].scratch_shape(model, vocab, labels)
