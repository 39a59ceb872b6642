"""The fused loss and its gradient against PyTorch, also where plain arithmetic loses precision."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tlm_core.training.vocabulary_loss import BLOCK, VocabularyLoss

ROWS, COUNT, HIDDEN, SIZE = 48, 41, 16, 2 * BLOCK + 37


def _inputs(spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, generator=draw, dtype=torch.float64)
    weight = spread * torch.randn(SIZE, HIDDEN, generator=draw, dtype=torch.float64)
    bias = torch.randn(SIZE, generator=draw, dtype=torch.float64)
    targets = torch.randint(SIZE, (ROWS,), generator=draw)
    return hidden, weight, bias, targets


def _both(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return (ours, PyTorch's in float64): loss and gradients by hidden, weight, and bias."""
    exact = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    loss = F.cross_entropy((exact[0] @ exact[1].t() + exact[2])[:COUNT], targets[:COUNT], reduction="sum")
    mine = [tensor.float().requires_grad_() for tensor in (hidden, weight, bias)]
    ours = VocabularyLoss.apply(*mine, targets, COUNT, dtype)
    return [ours, *torch.autograd.grad(ours, mine)], [loss, *torch.autograd.grad(loss, exact)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_vocabulary_loss_and_gradient_match_cross_entropy(dtype: torch.dtype, tolerance: float) -> None:
    for ours, exact in zip(*_both(*_inputs(0.3), dtype), strict=True):
        assert (ours.double() - exact).norm() <= tolerance * exact.norm()


def test_gradient_stays_precise_at_high_confidence() -> None:
    hidden, weight, bias, targets = _inputs(0.01)
    bias[targets] += 18.0  # all other entries share a probability of 1e-5
    for ours, exact in zip(*_both(hidden, weight, bias, targets, torch.float32), strict=True):
        assert (ours.double() - exact).norm() <= 1e-5 * exact.norm()


def test_overflowing_logit_gives_a_non_finite_loss() -> None:
    hidden, weight, bias, targets = _inputs(0.3)
    bias[3] = 100.0
    loss = VocabularyLoss.apply(hidden.float(), weight.float(), bias.float(), targets, COUNT, torch.float32)
    assert not torch.isfinite(loss)
