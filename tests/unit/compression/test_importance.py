"""Importance compared with finite differences of the gate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.compression.small_model import CPU, Small, small_model
from tlm_core.compression.importance import DOCUMENTS, gated, importance
from tlm_core.pulse import PULSE
from tlm_core.training.objective import loss_sums
from tlm_core.training.prepared import Prepared, task_batch

STEP = 1e-2  # the difference is far above the rounding error of float32
TEXTS = 10


@pytest.fixture(scope="module", params=["modernbert", "bert"])
def small(request: pytest.FixtureRequest, prepared: Prepared) -> Small:
    return small_model(prepared, request.param, layers=2)


def loss_of(small: Small, document: int, heads: torch.Tensor, blocks: torch.Tensor) -> float:
    split = small.prepared.split("validation")
    batch = task_batch(split, np.array([document]), small.prepared)
    with torch.inference_mode(), gated(small.model, list(heads), [gate[None] for gate in blocks]):
        return float(loss_sums(small.model, batch, CPU)[1])


def differences(small: Small) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over texts of |central difference of the text's loss by each gate|."""
    layers, per = small.model.shape.layers, small.model.shape.heads
    gates = torch.ones(layers, per), torch.ones(layers)
    means = np.zeros((layers, per)), np.zeros(layers)
    for document in range(TEXTS):
        for kind, mean in enumerate(means):
            for place in np.ndindex(mean.shape):
                losses = []
                for sign in (1, -1):
                    changed = [gate.clone() for gate in gates]
                    changed[kind][place] += sign * STEP
                    losses.append(loss_of(small, document, *changed))
                mean[place] += abs(losses[0] - losses[1]) / (2 * STEP) / TEXTS
    return means


def test_importance_is_mean_absolute_derivative_of_gates(small: Small) -> None:
    heads, blocks = differences(small)
    split = small.prepared.split("validation").first(TEXTS)
    scores = importance(small.model, split, small.prepared, device=CPU)
    np.testing.assert_allclose(scores.heads, heads / np.linalg.norm(heads, axis=1, keepdims=True), atol=1e-3)
    np.testing.assert_allclose(scores.blocks, blocks / np.linalg.norm(blocks), atol=1e-3)
    assert np.ptp(scores.heads) > 0.05


def test_importance_is_reproducible_and_reports_processed_texts(small: Small) -> None:
    split = small.prepared.split("train")
    assert len(split) > DOCUMENTS
    progress: list[int] = []
    first = importance(small.model, split, small.prepared, device=CPU)
    second = importance(small.model, split, small.prepared, device=CPU, progress=progress.append)
    np.testing.assert_array_equal(first.heads, second.heads)
    assert progress == [32, 60]


def test_hang_between_batches_of_texts_is_noticed_as_in_training(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    paces: list[tuple[bool, bool]] = []
    monkeypatch.setattr(PULSE, "advance", lambda: paces.append((PULSE.steady, PULSE.warm)))
    monkeypatch.setattr("tlm_core.compression.importance.DOCUMENTS", 8)
    importance(small.model, small.prepared.split("train"), small.prepared, device=CPU)
    assert paces.count((True, True)) == len(paces) - 1 > 4
    assert (PULSE.steady, PULSE.warm) == (False, False)


@pytest.mark.parametrize("as_published", [False, True])
def test_importance_does_not_depend_on_rows_at_once(
    small: Small, as_published: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, rows = small.prepared.split("train"), []
    expected = importance(small.model, split, small.prepared, device=CPU, as_published=as_published)
    hook = small.model.encoder.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    monkeypatch.setattr("tlm_core.training.memory.memory_limit", lambda: 0)
    scores = importance(small.model, split, small.prepared, device=CPU, as_published=as_published)
    hook.remove()
    assert set(rows) == {1}
    np.testing.assert_allclose(scores.heads, expected.heads, rtol=1e-4)
    np.testing.assert_allclose(scores.blocks, expected.blocks, rtol=1e-4)


def test_published_importance_weighs_early_batches_more(small: Small) -> None:
    """The released code never zeroes gradients, so it counts the first of two batches twice."""
    split, prepared = small.prepared.split("train"), small.prepared
    both = importance(small.model, split, prepared, device=CPU, as_published=True)
    parts = []
    for members in (range(DOCUMENTS), range(DOCUMENTS, len(split))):
        batch = task_batch(split, np.array(members), prepared)
        layers, per = small.model.shape.layers, small.model.shape.heads
        size = batch.rows.tokens.shape
        heads = [torch.ones(*size, per, requires_grad=True) for _ in range(layers)]
        blocks = [torch.ones(size, requires_grad=True) for _ in range(layers)]
        with gated(small.model, heads, blocks):
            loss = loss_sums(small.model, batch, CPU)[1] / len(members)
        derivatives = torch.autograd.grad(loss, [*heads, *blocks])
        by_position = torch.stack(derivatives[:layers]), torch.stack(derivatives[layers:])
        parts.append([values.abs().sum(dim=(1, 2)).double().numpy() for values in by_position])
    by_head, by_block = (2 * first + second for first, second in zip(*parts, strict=True))
    np.testing.assert_allclose(both.heads, by_head / np.linalg.norm(by_head, axis=1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(both.blocks, by_block / np.linalg.norm(by_block), rtol=1e-4)
    ours = importance(small.model, split, prepared, device=CPU)
    assert np.abs(ours.heads - both.heads).max() > 1e-3
