"""Importance against finite differences of the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.compression.made import CPU, Made, made_model
from tlm_core.compression.gates import gated
from tlm_core.compression.importance import DOCUMENTS, importance
from tlm_core.training.objective import loss_sums
from tlm_core.training.prepared import task_batch

STEP = 1e-2  # the difference stays far above the rounding of float32


@pytest.fixture(params=["modernbert", "bert"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return made_model(tmp_path, request.param, layers=2)


def loss_of(made: Made, document: int, heads: torch.Tensor, blocks: torch.Tensor) -> float:
    split = made.prepared.split("validation")
    batch = task_batch(split, np.array([document]), made.prepared)
    with torch.inference_mode(), gated(made.model, list(heads), [gate[None] for gate in blocks]):
        return float(loss_sums(made.model, batch, CPU)[1])


def differences(made: Made) -> tuple[np.ndarray, np.ndarray]:
    """Mean over texts of |central difference of the text's loss by each gate|."""
    layers, per = made.model.shape.layers, made.model.shape.heads
    ones = torch.ones(layers, per), torch.ones(layers)
    found = np.zeros((layers, per)), np.zeros(layers)
    count = len(made.prepared.split("validation"))
    for document in range(count):
        for gates, result in zip((0, 1), found, strict=True):
            for place in np.ndindex(result.shape):
                losses = []
                for sign in (1, -1):
                    moved = [gate.clone() for gate in ones]
                    moved[gates][place] += sign * STEP
                    losses.append(loss_of(made, document, *moved))
                result[place] += abs(losses[0] - losses[1]) / (2 * STEP) / count
    return found


def test_importance_is_the_mean_size_of_the_gate_s_derivative(made: Made) -> None:
    heads, blocks = differences(made)
    found = importance(made.model, made.prepared.split("validation"), made.prepared, device=CPU)
    np.testing.assert_allclose(found.heads, heads / np.linalg.norm(heads, axis=1, keepdims=True), atol=1e-3)
    np.testing.assert_allclose(found.blocks, blocks / np.linalg.norm(blocks), atol=1e-3)
    assert np.ptp(found.heads) > 0.05


def test_texts_are_weighed_alike_however_they_are_packed(made: Made) -> None:
    split = made.prepared.split("train")
    assert len(split) > DOCUMENTS
    whole = importance(made.model, split, made.prepared, device=CPU)
    told: list[int] = []
    again = importance(made.model, split, made.prepared, device=CPU, told=told.append)
    np.testing.assert_array_equal(whole.heads, again.heads)
    assert told == [32, 60]


@pytest.mark.parametrize("as_published", [False, True])
def test_importance_is_the_same_from_as_few_rows_as_memory_holds(
    made: Made, as_published: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, seen = made.prepared.split("train"), []
    whole = importance(made.model, split, made.prepared, device=CPU, as_published=as_published)
    made.model.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    monkeypatch.setattr("tlm_core.training.memory.memory_limit", lambda: 0)
    found = importance(made.model, split, made.prepared, device=CPU, as_published=as_published)
    assert set(seen) == {1}
    np.testing.assert_allclose(found.heads, whole.heads, rtol=1e-4)
    np.testing.assert_allclose(found.blocks, whole.blocks, rtol=1e-4)


def test_as_published_early_batches_weigh_more(made: Made) -> None:
    """Two batches: the released code counts the first twice, for its gradient is never zeroed."""
    split, prepared = made.prepared.split("train"), made.prepared
    both = importance(made.model, split, prepared, device=CPU, as_published=True)
    parts = []
    for members in (range(DOCUMENTS), range(DOCUMENTS, len(split))):
        batch = task_batch(split, np.array(members), prepared)
        layers, per = made.model.shape.layers, made.model.shape.heads
        size = batch.rows.tokens.shape
        heads = [torch.ones(*size, per, requires_grad=True) for _ in range(layers)]
        blocks = [torch.ones(size, requires_grad=True) for _ in range(layers)]
        with gated(made.model, heads, blocks):
            loss = loss_sums(made.model, batch, CPU)[1] / len(members)
        found = torch.autograd.grad(loss, [*heads, *blocks])
        by_position = torch.stack(found[:layers]), torch.stack(found[layers:])
        parts.append([derivatives.abs().sum(dim=(1, 2)).double().numpy() for derivatives in by_position])
    by_head, by_block = (2 * first + second for first, second in zip(*parts, strict=True))
    np.testing.assert_allclose(both.heads, by_head / np.linalg.norm(by_head, axis=1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(both.blocks, by_block / np.linalg.norm(by_block), rtol=1e-4)
    ours = importance(made.model, split, prepared, device=CPU)
    assert np.abs(ours.heads - both.heads).max() > 1e-3
