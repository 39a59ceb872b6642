"""Encoder architectures by name. A new architecture is one file here and one entry in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlm_core.training.architectures.base import Architecture, Shape
from tlm_core.training.architectures.table import ARCHITECTURES, architecture_named

__all__ = ["ARCHITECTURES", "Architecture", "Shape", "architecture_named", "architecture_of", "scratch_shape"]

if TYPE_CHECKING:
    from tlm_core.training.recipe import Model


def architecture_of(shape: Shape) -> Architecture:
    """Return the architecture of a shape."""
    return architecture_named(shape.architecture)


def scratch_shape(model: Model, vocab: int, labels: int) -> Shape:
    """Return the shape of a model that a job trains from scratch. model: the recipe's part."""
    return architecture_named(model.architecture).scratch_shape(model, vocab, labels)
