"""A small model away from its careful start, with prepared texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tests.unit.training.made import made_prepared, tiny
from tlm_core.training.model import TaskModel
from tlm_core.training.prepared import Prepared
from tlm_core.training.stages import build

CPU = torch.device("cpu")


@dataclass
class Made:
    model: TaskModel
    prepared: Prepared


def made_model(folder: Path, architecture: str, *, layers: int = 3, pair: bool = False) -> Made:
    recipe = tiny(
        model__architecture=architecture,
        model__layers=layers,
        model__heads=4,
        model__max_length=32,
        selection__selector="none",
    )
    prepared = Prepared(made_prepared(folder, recipe, pair=pair, alone=True))
    model = build(recipe.model, prepared, seed=3)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=random))
    return Made(model.eval(), prepared)
