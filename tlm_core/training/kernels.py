"""Attention and gated feed-forward blocks on packed rows.

Our gradients read and write memory less often than those of autograd. Between two matrix products, memory traffic
dominates the time. Elementwise operations are several times as fast on contiguous tensors. In bfloat16, they are faster
out of place than in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

if TYPE_CHECKING:
    from tlm_core.training.stream import StreamKernels

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each [L, head]


@dataclass(frozen=True)
class RowKernels:
    """Attention and gating of a layer on packed rows. `StreamKernels` has the same methods for streams.

    hidden: [R, 1, L, L], True where the token of axis 2 does not attend to that of axis 3. dtype: type of the products.
    """

    hidden: Tensor
    rotation: Rotation | None
    dtype: torch.dtype

    def attend(self, qkv: Tensor, heads: int, dropout: float) -> Tensor:
        """Return the attention of each token to its document, [R, L, heads * width]. qkv: [R, L, 3 * heads * width].

        Only a GPU uses the fused kernel. On a CPU, the backward pass of this kernel takes four times as long as
        separate operations, at usual lengths of rows.
        """
        query, key, value = Heads.apply(qkv.unflatten(-1, (3, heads, -1)), self.rotation)
        if query.is_cuda:
            y = F.scaled_dot_product_attention(query, key, value, attn_mask=~self.hidden, dropout_p=dropout)
        else:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            with torch.no_grad():  # softmax passes no gradient to a masked score
                scores.masked_fill_(self.hidden, -math.inf)
            y = F.dropout(scores.softmax(dim=-1, dtype=scores.dtype), dropout) @ value
        return y.transpose(1, 2).flatten(-2)

    def gated(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return gelu(value) * gate, [..., n]. The halves of weight [2n, H] map x [..., H] to value and gate."""
        return GatedLinear.apply(x, weight, self.dtype)


Kernels: TypeAlias = "RowKernels | StreamKernels"


class Heads(torch.autograd.Function):
    """Splits `qkv` into queries, keys, and values of all heads, and applies rotary positions (Su et al. 2021).

    The results are contiguous, because the next matrix products need contiguous tensors. The backward pass applies the
    inverse rotation.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, qkv: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [R, heads, L, head], from qkv [R, L, 3, heads, head].

        rotation: cosines and sines, each [L, head], whose second half repeats the first; None: no rotary positions.
        """
        ctx.rotation = rotation
        parts = qkv.permute(2, 0, 3, 1, 4)
        if rotation is None:
            query, key, value = parts.contiguous()
            return query, key, value
        query, key = _rotated(parts[:2], *rotation)
        return query, key, parts[2].contiguous()

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        to_query, to_key, to_value = gradients
        if ctx.rotation is not None:
            cos, sin = ctx.rotation
            to_query, to_key = _rotated(to_query, cos, -sin), _rotated(to_key, cos, -sin)
        return torch.stack([part.transpose(1, 2) for part in (to_query, to_key, to_value)], dim=2), None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    middle = sin.shape[-1] // 2
    half = sin[..., :middle]
    # The rolled x is x rotated by 90 degrees, without the minus sign. The sines have this sign instead.
    return torch.addcmul(x.roll(middle, dims=-1) * torch.cat((-half, half), dim=-1), x, cos)


class GatedLinear(torch.autograd.Function):
    """Computes gelu(value) * gate. The two halves of one matrix yield value and gate (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return gelu(value) * gate, [..., n], of x [..., H] and weight [2n, H]. dtype: type of the products."""
        x, weight = x.to(dtype), weight.to(dtype)
        value, gate = (F.linear(x, half) for half in weight.chunk(2))
        active = F.gelu(value)
        ctx.save_for_backward(x, weight, value, gate, active)
        return active * gate

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, value, gate, active = ctx.saved_tensors
        to_gate = (gradients[0] * active).flatten(0, -2)
        to_value = torch.ops.aten.gelu_backward(gradients[0] * gate, value).flatten(0, -2)
        value_weight, gate_weight = weight.chunk(2)
        to_x = torch.addmm(to_value @ value_weight, to_gate, gate_weight)
        flat = x.flatten(0, -2)
        to_weight = torch.cat((to_value.t() @ flat, to_gate.t() @ flat))
        return to_x.view_as(x), to_weight, None
