"""A small model with random weights, and the texts that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tests.unit.training.made import tiny
from tlm_core.compression.importance import gated, mask_gates
from tlm_core.compression.masks import Mask
from tlm_core.training.encoder_stages import build
from tlm_core.training.model import TaskModel
from tlm_core.training.prepared import Prepared
from tlm_core.training.recipe import Recipe

CPU = torch.device("cpu")


@dataclass
class Small:
    model: TaskModel
    prepared: Prepared


def small_recipe(architecture: str, layers: int = 3) -> Recipe:
    return tiny(
        model__architecture=architecture,
        model__layers=layers,
        model__heads=4,
        model__max_length=32,
        selection__selector="none",
    )


def small_model(prepared: Prepared, architecture: str, *, layers: int = 3) -> Small:
    """Return a model with larger weights than at the start of training, so that every part affects the output."""
    model = build(small_recipe(architecture, layers).model, prepared, seed=3)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=random))
    return Small(model.eval(), prepared)


@contextmanager
def masked(model: TaskModel, mask: Mask) -> Iterator[None]:
    """Run `model` without heads and blocks that are False in `mask`."""
    with gated(model, *mask_gates(mask, next(model.parameters()).device)):
        yield
