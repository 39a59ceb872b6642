"""The kernels' values and gradients against the plain formulas."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tlm_core.training.kernels import Gate, Rotate
from tlm_core.training.model import rotation


def test_rotation_is_a_turn_of_each_pair_by_its_angle() -> None:
    draw = torch.Generator().manual_seed(0)
    stored = torch.randn(2, 7, 3, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    x = stored.transpose(1, 2)  # strided, as the model gives it
    cos, sin = rotation(7, 8, 10_000.0, torch.device("cpu"), torch.float64)
    turned = Rotate.apply(x, cos, sin)
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(cos[:, :4], sin[:, :4])
    torch.testing.assert_close(turned, torch.cat((pairs.real, pairs.imag), dim=-1))
    assert turned.is_contiguous()
    assert torch.autograd.gradcheck(lambda y: Rotate.apply(y.transpose(1, 2), cos, sin), stored)


def test_gate_is_gelu_of_one_half_times_the_other() -> None:
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(Gate.apply(x), F.gelu(x[..., :4]) * x[..., 4:])
    assert torch.autograd.gradcheck(Gate.apply, x)
