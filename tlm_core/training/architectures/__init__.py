"""Encoder architectures by name. A new architecture is one class here and one entry in the table.

No module of this package imports torch, because the gateway validates recipes and estimates jobs with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlm_core.training.architectures.base import Architecture, Shape
from tlm_core.training.architectures.bert import Bert, Electra, Roberta
from tlm_core.training.architectures.modernbert import ModernBert

__all__ = ["ARCHITECTURES", "Architecture", "Shape", "architecture_of", "scratch_shape"]

if TYPE_CHECKING:
    from tlm_core.training.recipe import Model

ARCHITECTURES: dict[str, Architecture] = {
    "modernbert": ModernBert(),
    "bert": Bert(),
    "electra": Electra(),
    "roberta": Roberta(),
}


def architecture_of(shape: Shape) -> Architecture:
    """Return the architecture of a shape."""
    return ARCHITECTURES[shape.architecture]


def scratch_shape(model: Model, vocab: int, labels: int) -> Shape:
    """Return the shape of a model that a job trains from scratch. model: the part `model` of the recipe."""
    return ARCHITECTURES[model.architecture].scratch_shape(model, vocab, labels)
