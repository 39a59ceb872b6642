"""Weights of the classes in the loss of finetuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.unit.training.made import made_prepared, tiny
from tests.unit.training.test_regression import made_regression
from tlm_core.errors import InvalidRecipe
from tlm_core.stages import FINETUNE, PREPARE
from tlm_core.training.encoder_stages import build
from tlm_core.training.local import run_stage
from tlm_core.training.objective import Workers, accumulate_gradient, loss_sums
from tlm_core.training.params import FinetuneParams, PrepareParams
from tlm_core.training.prepared import Prepared, TaskBatches, balanced_weights, weighted
from tlm_core.training.state import read_history

CPU = torch.device("cpu")
BALANCED = tiny(finetune__class_weights="balanced", joint__enabled=False, precision="fp32")


def test_balanced_weights_give_each_class_the_same_sum() -> None:
    labels = np.repeat([0, 2, 3], [60, 30, 10])  # class 1 does not occur
    weights = balanced_weights(labels)
    np.testing.assert_allclose(weights[[0, 2, 3]] * [60, 30, 10], 100 / 3, rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1.0)


def test_weight_of_a_rare_class_is_limited() -> None:
    assert balanced_weights(np.repeat([0, 1], [999, 1])).tolist() == pytest.approx([1000 / 1998, 10.0])


def test_weighted_loss_is_that_of_torch_over_the_number_of_texts(tmp_path: Path) -> None:
    prepared = Prepared(made_prepared(tmp_path, BALANCED, alone=True))
    model = build(BALANCED.model, prepared, 0).eval()
    with torch.no_grad():
        model.task.out.weight.normal_(generator=torch.Generator().manual_seed(0))
    weights = np.array([0.5, 3.0, 1.25], dtype=np.float32)
    batch = replace(TaskBatches(prepared, 16, 0)(0, 0.0), class_weights=weights)
    rows: list[torch.Tensor] = []
    model.task.register_forward_hook(lambda _, __, logits: rows.append(logits.detach().float()))
    total = accumulate_gradient(model, batch, Workers(), 2, "fp32", CPU)[1]
    logits, labels = torch.cat(rows), torch.from_numpy(batch.labels)
    mean = F.cross_entropy(logits, labels, torch.from_numpy(weights))
    assert float(total) == pytest.approx(float(mean) * weights[batch.labels].sum(), rel=1e-5)
    plain = loss_sums(model, replace(batch, class_weights=None), CPU)[1]
    assert float(plain.detach()) == pytest.approx(float(F.cross_entropy(logits, labels, reduction="sum")), rel=1e-5)
    assert float(plain.detach()) != pytest.approx(float(total), rel=1e-2)


def test_finetuning_uses_the_weights_of_the_train_split(tmp_path: Path) -> None:
    prepared = Prepared(made_prepared(tmp_path / "data", BALANCED, alone=True))
    draw = TaskBatches(prepared, 16, 0)
    batch = weighted(draw, prepared, BALANCED.finetune)(0, 0.0)
    np.testing.assert_array_equal(batch.class_weights, balanced_weights(prepared.split("train").labels))
    assert weighted(draw, prepared, tiny().finetune) is draw
    losses = []
    for recipe in (BALANCED, tiny(joint__enabled=False, precision="fp32")):
        folder = tmp_path / recipe.finetune.class_weights
        out = run_stage(FINETUNE, {"prepared": prepared.folder}, FinetuneParams.of(recipe, 0), folder)
        losses.append(read_history(out)["points"][-1]["task"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_regression_rejects_class_weights(tmp_path: Path) -> None:
    task = made_regression(tmp_path / "task")
    prepared = run_stage(PREPARE, {"task": task}, PrepareParams.of(BALANCED), tmp_path / "prepared")
    with pytest.raises(InvalidRecipe, match=r"has no classes\. Set finetune\.class_weights to none"):
        run_stage(FINETUNE, {"prepared": prepared}, FinetuneParams.of(BALANCED, 0), tmp_path / "out")
