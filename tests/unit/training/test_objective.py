"""The joint loss against a plain reference, and one gradient for every division of a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.training.made import made_prepared, tiny
from tlm_core.errors import InvalidRecipe
from tlm_core.training.encoder_stages import build
from tlm_core.training.masking import NOT_MASKED
from tlm_core.training.model import TaskModel
from tlm_core.training.objective import Workers, accumulate_gradient
from tlm_core.training.optim import EXTRAS, Buffers
from tlm_core.training.prepared import Batch, JointBatches, Prepared

CPU = torch.device("cpu")


@dataclass
class Setup:
    model: TaskModel
    buffers: Buffers
    batches: JointBatches
    token_weights: Tensor


@pytest.fixture(params=["modernbert", "bert"])
def setup(request: pytest.FixtureRequest, tmp_path: Path) -> Setup:
    recipe = tiny(model__architecture=request.param, joint__rho1=1, joint__rho2=20, joint__task_batch=24)
    prepared = Prepared(made_prepared(tmp_path, recipe))
    model = build(recipe.model, prepared, seed=3)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    joint = recipe.joint
    weights = torch.from_numpy(prepared.token_weights)
    return Setup(model, Buffers(model, muon=False), JointBatches(prepared, joint, seed=3), weights)


def plain_losses(model: TaskModel, batch: Batch, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean losses, computed per document without packing, with logits for every position.

    weights: [V], those of the bag of words. Its loss is the mean over the masked tokens, as that of MLM.
    """
    mlm, words, task = [], [], []
    for row in range(len(batch.rows)):
        for segment in range(1, int(batch.rows.segments[row].max()) + 1):
            inside = batch.rows.segments[row] == segment
            tokens = torch.from_numpy(batch.tokens[row][inside])[None]
            segments, zeros = torch.ones_like(tokens), torch.zeros_like(tokens)
            hidden = model.encoder(tokens, segments, torch.arange(tokens.shape[1])[None], zeros)
            logits = model.vocabulary(hidden)[0]
            targets = torch.from_numpy(batch.targets[row][inside])
            mlm.append(torch.nn.functional.cross_entropy(logits, targets, ignore_index=NOT_MASKED, reduction="none"))
            pooled = hidden[0, 0] if model.shape.architecture == "bert" else hidden[0].mean(dim=0)
            original = torch.from_numpy(batch.rows.tokens[row][inside])
            predicted = model.vocabulary.out(model.vocabulary.norm(pooled)).log_softmax(dim=0)
            mean = -(weights[original] * predicted[original]).sum() / weights[original].sum()
            words.append(int((targets != NOT_MASKED).sum()) * mean)
            for place in np.flatnonzero((batch.rows.doc_row == row) & (batch.rows.doc_segment == segment)):
                label = torch.tensor(batch.labels[place])
                task.append(torch.nn.functional.cross_entropy(model.task(pooled[None])[0], label))
    masked = torch.cat(mlm)[torch.cat(mlm) != 0]
    words_mean = torch.stack(words).sum() / len(masked)
    return masked.mean(), words_mean, torch.stack(task).mean() if task else torch.zeros(())


@pytest.mark.parametrize("step", [0, 1])
def test_joint_loss_and_gradient_match_a_dense_reference(setup: Setup, step: int) -> None:
    batch = setup.batches(step, 0.0)
    assert bool(batch.documents) == (step == 1)
    mlm_sum, task_sum = accumulate_gradient(setup.model, batch, Workers(), 64, "fp32", CPU).tolist()
    packed = setup.buffers.gradient.clone()
    mlm, words, task = plain_losses(setup.model, batch, setup.token_weights)
    assert mlm_sum / batch.masked == pytest.approx(mlm.item(), abs=1e-5)
    loss = mlm + words
    if step == 1:
        assert task_sum / batch.documents == pytest.approx(task.item(), abs=1e-5)
        loss = (20 * (mlm + words) + task) / 21
    setup.buffers.gradient.zero_()
    loss.backward()
    largest = setup.buffers.gradient.abs().max()
    assert (packed - setup.buffers.gradient).abs().max() <= 1e-5 * max(1.0, float(largest))


@pytest.mark.parametrize("step", [0, 1])
def test_gradient_does_not_depend_on_workers_or_micro_batches(setup: Setup, step: int) -> None:
    batch = setup.batches(step, 0.0)
    gradients = []
    for workers, micro_rows in ((1, 64), (2, 64), (1, 2), (3, 1)):
        setup.buffers.gradient.zero_()
        sums = torch.zeros(2)
        for rank in range(workers):  # the addends of the all-reduce
            sums += accumulate_gradient(setup.model, batch, Workers(rank, workers), micro_rows, "fp32", CPU)
        gradients.append((setup.buffers.gradient.clone(), sums))
    gradient, sums = gradients[0]
    for other, other_sums in gradients[1:]:
        assert (other - gradient).abs().max() <= 1e-6 * gradient.abs().max()
        torch.testing.assert_close(other_sums, sums, rtol=1e-5, atol=0)
    assert gradient[:-EXTRAS].abs().max() > 0


@pytest.mark.parametrize("step", [0, 1])
def test_gradient_of_64_rows_does_not_depend_on_their_division(step: int, tmp_path: Path) -> None:
    recipe = tiny(joint__rho1=1, joint__rho2=20, joint__batch_rows=64, joint__task_batch=400)
    prepared = Prepared(made_prepared(tmp_path, recipe))
    model = build(recipe.model, prepared, seed=3)
    buffers, batch = Buffers(model, muon=False), JointBatches(prepared, recipe.joint, seed=3)(step, 0.0)
    assert len(batch.rows) >= 64
    gradients = []
    for workers, micro_rows in ((1, 1000), (2, 32), (1, 16)):
        buffers.gradient.zero_()
        for rank in range(workers):
            accumulate_gradient(model, batch, Workers(rank, workers), micro_rows, "fp32", CPU)
        gradients.append(buffers.gradient.clone())
    largest = gradients[0].abs().max()
    assert largest > 0
    assert all((other - gradients[0]).abs().max() <= 1e-6 * largest for other in gradients[1:])


@pytest.mark.parametrize(("pair", "marked", "used"), [(False, False, True), (True, False, False), (False, True, False)])
def test_bag_of_words_excludes_pairs_and_marked_spans(pair: bool, marked: bool, used: bool, tmp_path: Path) -> None:
    recipe = tiny()
    prepared = Prepared(made_prepared(tmp_path, recipe))
    prepared.facts |= {"pair": pair, "marked_spans": marked}
    assert recipe.joint.bag_of_words == "auto"
    for step in range(4):
        assert (JointBatches(prepared, recipe.joint, seed=0)(step, 0.0).bag_of_words is not None) == used
    for always in (False, True):
        joint = recipe.joint.model_copy(update={"bag_of_words": always})
        assert (JointBatches(prepared, joint, seed=0)(0, 0.0).bag_of_words is not None) == always


def test_every_rho1_plus_first_step_is_a_task_step(tmp_path: Path) -> None:
    recipe = tiny(joint__rho1=3)
    prepared = Prepared(made_prepared(tmp_path, recipe))
    batches = JointBatches(prepared, recipe.joint, seed=0)
    assert [bool(batches(step, 0.0).documents) for step in range(8)] == [False, False, False, True] * 2


@pytest.mark.parametrize(
    ("over", "weights"),
    [
        ({"joint__rho2": 20}, (20 / 21, 1 / 21)),
        ({"joint__task_loss": False}, (1.0, 0.0)),
        ({"joint__mlm_on_task": False}, (0.0, 1.0)),
    ],
)
def test_parts_of_the_objective_can_be_disabled(
    over: dict[str, object], weights: tuple[float, float], tmp_path: Path
) -> None:
    recipe = tiny(joint__rho1=0, **over)
    batch = JointBatches(Prepared(made_prepared(tmp_path, recipe)), recipe.joint, seed=0)(0, 0.0)
    assert (batch.mlm_weight, batch.task_weight) == pytest.approx(weights)
    assert (batch.masked > 0) == (weights[0] > 0)


def test_without_passages_every_step_is_a_task_step(tmp_path: Path) -> None:
    recipe = tiny()
    batches = JointBatches(Prepared(made_prepared(tmp_path, recipe, alone=True)), recipe.joint, seed=0)
    assert all(batches(step, 0.0).documents for step in range(4))


def test_joint_stage_without_any_loss_fails(tmp_path: Path) -> None:
    prepared = Prepared(made_prepared(tmp_path, tiny(), alone=True))  # of an empty selection
    joint = tiny(joint__task_loss=False, joint__mlm_on_task=False).joint
    with pytest.raises(InvalidRecipe, match=r"Set one of them to true, or joint\.enabled to false"):
        JointBatches(prepared, joint, seed=0)


def test_no_step_is_a_task_step_without_task_losses(tmp_path: Path) -> None:
    recipe = tiny(joint__task_loss=False, joint__mlm_on_task=False)
    batches = JointBatches(Prepared(made_prepared(tmp_path, recipe)), recipe.joint, seed=0)
    assert not any(batches(step, 0.0).documents for step in range(8))


def test_mask_rate_can_decrease_over_the_budget(tmp_path: Path) -> None:
    recipe = tiny(joint__mask_rate=0.6, joint__mask_rate_end=0.1, joint__batch_rows=64)
    batches = JointBatches(Prepared(made_prepared(tmp_path, recipe)), recipe.joint, seed=0)
    rates = [batches(0, progress).masked / batches(0, progress).rows.real_tokens for progress in (0.0, 0.5, 1.0)]
    assert rates == pytest.approx([0.6, 0.35, 0.1], abs=0.05)
