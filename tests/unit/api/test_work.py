"""Work that is counted beforehand is the work that the loop counts while it does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.api.work import Texts, finetune_work, joint_work, sizes_of
from tests.unit.training.made import made_prepared, tiny
from tlm_core.training import stages
from tlm_core.training.objective import step_flops
from tlm_core.training.optim import Optimizer
from tlm_core.training.prepared import FinetuneBatches, JointBatches, Prepared

RECIPES: list[dict[str, Any]] = [
    {"joint__rho1": 3, "joint__budget__steps": 24},
    {"joint__rho1": 0, "joint__budget__steps": 20},
    {"joint__budget__steps": 24, "model__architecture": "bert", "joint__optimizer__name": "adamw"},
    {"joint__budget__tokens": 12_000, "joint__mlm_on_task": False},
    {"joint__budget__flops": 2e9, "joint__task_loss": False, "joint__mask_rate": 0.4, "joint__mask_rate_end": 0.1},
    {"joint__budget__steps": 8, "model__max_length": 96, "joint__batch_rows": 16, "finetune__max_steps": 5},
]


@pytest.mark.parametrize("over", RECIPES)
def test_counted_beforehand_is_counted_while_training(over: dict[str, Any], tmp_path: Path) -> None:
    recipe = tiny(**over)
    prepared = Prepared(made_prepared(tmp_path, recipe))
    words = [len(text.split()) for text in made_texts(tmp_path / "task")]
    facts = prepared.facts["tokens"]
    texts = Texts(
        {"train": 60, "validation": 24, "test": 30}, float(np.mean(words)), float(np.median(words)),
        float(np.percentile(words, 95)), tokens=facts["train"] / 60,
    )  # fmt: skip
    sizes = sizes_of(recipe, 3, prepared.vocabulary.size)
    assert sizes is not None
    model = stages.build(recipe.model, prepared, 0)
    assert sizes.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.05)

    part = recipe.joint
    optimizer = Optimizer(model, part.optimizer, ("encoder", "vocabulary", "task"))
    expected = joint_work(recipe, sizes, texts, facts["passages"] / prepared.facts["passages"], retrieves=True)
    batches = JointBatches(prepared, part, 0)
    taken = [batches(step, step / expected.steps) for step in range(round(expected.steps))]
    assert sum(b.rows.real_tokens for b in taken) == pytest.approx(expected.tokens, rel=0.05)
    flops = sum(step_flops(model.shape, b) + optimizer.flops for b in taken)
    assert flops == pytest.approx(expected.flops, rel=0.1)

    expected = finetune_work(recipe, sizes, texts)
    assert expected.steps == recipe.finetune.steps(60)
    finetune = FinetuneBatches(prepared, recipe.finetune.batch, 0)
    done = [finetune(step, 0.0) for step in range(round(expected.steps))]
    assert sum(b.rows.real_tokens for b in done) == pytest.approx(expected.tokens, rel=0.05)
    assert sum(step_flops(model.shape, b) for b in done) == pytest.approx(expected.flops, rel=0.1)


def made_texts(folder: Path) -> list[str]:
    from tlm_core.tasks.task import Task

    return Task.read(folder).texts("train")


def test_the_shape_of_a_published_encoder_is_not_guessed() -> None:
    assert sizes_of(tiny(model__init="hub:some/encoder", tokenizer__source="hub:some/encoder"), 3, None) is None
