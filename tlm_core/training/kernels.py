"""Elementwise parts of the encoder with gradients of their own, for fewer passes over memory than autograd makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Rotate(torch.autograd.Function):
    """Turn queries or keys by their positions' angles (Su et al. 2021); the gradient is turned back.

    What comes out is contiguous, as the matrix products after it want it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [R, heads, L, head], strided as it may be; cos, sin: [L, head], the second half like the first."""
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    half = sin[..., : left.shape[-1]]
    turned = torch.cat((right, left), dim=-1)  # a quarter turn but for the sign, which the sines carry
    return turned.mul_(torch.cat((-half, half), dim=-1)).addcmul_(x, cos)


class Gate(torch.autograd.Function):
    """gelu(value) * gate, where value and gate are the halves of the last dimension (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x: [..., 2n] to [..., n]."""
        value, gate = x.chunk(2, dim=-1)
        active = F.gelu(value)
        ctx.save_for_backward(x, active)
        return active * gate

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, active = ctx.saved_tensors
        value, gate = x.chunk(2, dim=-1)
        whole = torch.empty_like(x)
        to_value, to_gate = whole.chunk(2, dim=-1)
        torch.mul(gradients[0], active, out=to_gate)
        torch.ops.aten.gelu_backward.grad_input(gradients[0] * gate, value, grad_input=to_value)
        return whole
