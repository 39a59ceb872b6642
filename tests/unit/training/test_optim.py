from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tlm_core.errors import CorruptArtifact
from tlm_core.training.architectures import scratch_shape
from tlm_core.training.model import TaskModel, initialize
from tlm_core.training.objective import Workers
from tlm_core.training.optim import (
    ALIGNED,
    EXTRAS,
    Buffers,
    FlatOptimizer,
    learning_rate,
    orthogonalize,
    orthogonalize_shares,
)
from tlm_core.training.recipe import Model, Optimizer

PARTS = ("encoder", "vocabulary", "task")


def small_model(labels: int = 3, **more: Any) -> TaskModel:
    shape = {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 48, **more}
    model = TaskModel(scratch_shape(Model(**shape), 60, labels))
    initialize(model, 0)
    return model


class Alone(Workers):
    """A worker whose sum is its own addend."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def scatter(buffers: Buffers, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    buffers.gradient[:-EXTRAS] = torch.randn(buffers.value.shape, generator=random)


def values(model: TaskModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_buffers_hold_every_parameter_once_and_unchanged(architecture: str) -> None:
    model = small_model(architecture=architecture)
    before = values(model)
    buffers = Buffers(model, muon=True)
    assert buffers.value.numel() == sum(tensor.numel() for tensor in before.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in values(model).items())
    buffers.value.add_(1.0)
    assert all(torch.equal(tensor, before[name] + 1.0) for name, tensor in values(model).items())
    places = [(section.start, section.stop) for section in buffers.sections]
    assert places[0][0] == 0 and places[-1][1] == buffers.value.numel()
    assert all(left[1] == right[0] for left, right in itertools.pairwise(places))


def test_sections_of_a_gpu_begin_at_whole_vectors() -> None:
    model, twin = small_model(labels=7), small_model(labels=7)
    plain, aligned = Buffers(model, muon=True), Buffers(twin, muon=True, multiple=ALIGNED)
    assert any(section.start % ALIGNED for section in plain.sections)
    assert [section.start % ALIGNED for section in aligned.sections] == [0] * len(plain.sections)
    assert aligned.value.numel() > plain.value.numel() and float(aligned.value.sum()) == pytest.approx(
        float(plain.value.sum())
    )
    assert all(torch.equal(tensor, values(model)[name]) for name, tensor in values(twin).items())


def test_workers_divide_the_matrices_of_muon() -> None:
    matrices = torch.randn(5, 32, 48, generator=torch.Generator().manual_seed(0))
    shares = [orthogonalize_shares(matrices, torch.float32, Alone(rank, 3)) for rank in range(3)]
    assert [int(share.any(dim=2).any(dim=1).sum()) for share in shares] == [1, 2, 2]
    torch.testing.assert_close(sum(shares), orthogonalize(matrices, torch.float32))


def test_adamw_matches_torch() -> None:
    recipe = Optimizer(name="adamw", lr=0.01, weight_decay=0.1, clip=None)
    model, twin = small_model(), small_model()
    optimizer = FlatOptimizer(model, recipe, PARTS)
    groups = [
        {"params": [p for p in twin.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in twin.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    library = torch.optim.AdamW(groups, lr=0.005, betas=recipe.betas)
    for step in range(3):
        scatter(optimizer.buffers, step)
        for name, parameter in twin.named_parameters():
            parameter.grad = model.get_parameter(name).grad.clone()  # type: ignore[union-attr]
        optimizer.step(0.5, PARTS)
        library.step()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-5, atol=1e-6)


def test_muon_matches_torch_on_a_single_matrix() -> None:
    recipe = Optimizer(name="muon", muon_lr=0.02, weight_decay=2.0, clip=None)
    model, twin = small_model(), small_model()
    name = "encoder.layers.0.mlp_out.weight"
    before = twin.get_parameter(name).detach().clone()
    optimizer = FlatOptimizer(model, recipe, PARTS)
    library = torch.optim.Muon([twin.get_parameter(name)], lr=0.02, weight_decay=2.0, momentum=0.95)
    for step in range(3):
        scatter(optimizer.buffers, step)
        twin.get_parameter(name).grad = model.get_parameter(name).grad.clone()  # type: ignore[union-attr]
        optimizer.step(1.0, PARTS)
        library.step()
    moved = (twin.get_parameter(name) - before).norm()
    apart = (twin.get_parameter(name) - model.get_parameter(name)).norm()
    assert apart < 0.03 * moved  # both round to bfloat16 and sum in different orders


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 48, 32), (2, 32, 48)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalize(matrices, torch.float32, 8))
    assert singular.min() > 0.6 and singular.max() < 1.3


def test_queries_keys_and_values_are_orthogonalized_separately() -> None:
    sections = {s.name: s.block for s in Buffers(small_model(), muon=True).sections if s.block}
    assert sections == {"encoder.muon.32x32": (32, 32), "encoder.muon.32x48": (32, 48), "encoder.muon.48x32": (48, 32)}


def test_inactive_parts_do_not_change() -> None:
    model = small_model()
    optimizer = FlatOptimizer(model, Optimizer(), PARTS)
    scatter(optimizer.buffers, 0)
    before = values(model)
    optimizer.step(1.0, ("encoder", "vocabulary"))
    after = values(model)
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("task."), name


def test_clip_limits_the_gradient_and_returns_its_norm() -> None:
    optimizer = FlatOptimizer(small_model(), Optimizer(clip=0.5), PARTS)
    scatter(optimizer.buffers, 0)
    norm = float(optimizer.buffers.gradient[:-EXTRAS].norm())
    assert optimizer.clip() == pytest.approx(norm)
    assert float(optimizer.buffers.gradient[:-EXTRAS].norm()) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_device_skips_an_update_that_is_not_finite(name: str) -> None:
    model = small_model()
    optimizer = FlatOptimizer(model, Optimizer(name=name), PARTS)
    scatter(optimizer.buffers, 0)
    optimizer.step(1.0, PARTS)
    before = [values(model), {name: moment.clone() for name, moment in optimizer.state().items()}]
    optimizer.buffers.gradient[::7] = float("nan")
    optimizer.update(1.0, PARTS, skip=torch.ones(()))
    for tensors, saved in zip((values(model), optimizer.state()), before, strict=True):
        assert all(torch.equal(tensors[name], saved[name]) for name in saved)
    optimizer.step(1.0, PARTS, torch.tensor(False))
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in values(model).items())


def test_device_update_with_a_finite_gradient_equals_the_plain_one() -> None:
    models = small_model(), small_model()
    plain, on_device = (FlatOptimizer(model, Optimizer(), PARTS) for model in models)
    for step in range(3):
        for optimizer in (plain, on_device):
            scatter(optimizer.buffers, step)
        plain.step(1.0, PARTS)
        on_device.update(torch.ones(()), PARTS, skip=torch.zeros(()))
    torch.testing.assert_close(plain.buffers.value, on_device.buffers.value, rtol=1e-6, atol=1e-7)


def test_step_writes_the_copies_that_a_gpu_computes_with() -> None:
    model = small_model(architecture="bert")
    optimizer = FlatOptimizer(model, Optimizer(), PARTS)
    leaves = optimizer.leaves(torch.bfloat16)
    for change in (lambda: optimizer.step(1.0, PARTS), lambda: (optimizer.buffers.value.add_(1), optimizer.refresh())):
        scatter(optimizer.buffers, 0)
        change()
        for name, parameter in model.named_parameters():
            assert torch.equal(leaves[name], parameter.to(leaves[name].dtype)), name
    wide = {name for name, leaf in leaves.items() if leaf.dtype == torch.float32}
    assert wide == {"vocabulary.out.bias"} and all(leaf.requires_grad for leaf in leaves.values())


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [learning_rate(progress, 0.1) for progress in (0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert learning_rate(0.0, 0.0) == 1.0


def test_optimizer_state_of_another_model_is_rejected() -> None:
    saved = FlatOptimizer(small_model(), Optimizer(), PARTS).state()
    with pytest.raises(CorruptArtifact, match="another model"):
        FlatOptimizer(small_model(intermediate=64), Optimizer(), PARTS).load_state(saved)
    with pytest.raises(CorruptArtifact, match="another model"):
        FlatOptimizer(small_model(), Optimizer(name="adamw"), PARTS).load_state(saved)
