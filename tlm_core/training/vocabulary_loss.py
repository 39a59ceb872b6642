"""Cross-entropy over the vocabulary, fused with the matrix product before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Tokens of the vocabulary worked on at once: their logits stay in a core's cache from one product to the next.
BLOCK = 1024


class VocabularyLoss(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T + bias` against `targets`.

    The gradient is computed along with the loss, block of the vocabulary by block, with one exponential for each
    logit and no pass for the largest: exponents of float32 and bfloat16 reach to 88 nats, and logits beyond that
    give a loss that is not a number. The target's own term is kept apart, so that nothing cancels when the model
    is nearly sure.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, count: int, dtype: torch.dtype
    ) -> Tensor:
        """hidden: [M, H]; weight: [V, H]; bias: [V]; targets: [M], of which `count` count; dtype: of the products."""
        x, w, b = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
        row = torch.arange(len(x), device=x.device)
        hit = (x.float() * w[targets].float()).sum(dim=1) + b[targets].float()
        others = torch.zeros_like(hit)
        to_hidden = torch.zeros_like(hidden)
        exponentials = []
        for start in range(0, len(w), BLOCK):
            block = w[start : start + BLOCK]
            e = torch.addmm(b[start : start + BLOCK], x, block.t()).exp_()
            place = (targets - start).clamp(0, len(block) - 1)
            e[row, place] *= place != targets - start
            others += e.sum(dim=1, dtype=torch.float32)
            to_hidden += e @ block
            exponentials.append(e)
        total = others + hit.exp()
        scale = total.reciprocal()
        scale[count:] = 0.0
        miss = (others * scale)[:, None]  # 1 - probability of the target
        to_hidden.mul_(scale[:, None]).sub_(miss * w[targets])
        to_weight, to_bias = torch.empty_like(weight), torch.empty_like(bias)
        scaled, share = (x * scale[:, None]).to(dtype), scale.to(dtype)[None]
        for number, e in enumerate(exponentials):
            here = slice(number * BLOCK, (number + 1) * BLOCK)
            to_weight[here] = e.t() @ scaled
            to_bias[here] = (share @ e)[0]
        # A frequent token has many terms of its own; one after the other in float32 they would blur its sum.
        found, place = targets.unique(return_inverse=True)
        own = torch.zeros(len(found), x.shape[1], dtype=torch.float64, device=x.device)
        own.index_add_(0, place, (miss * x).double())
        to_weight[found] = (to_weight[found].double() - own).to(to_weight.dtype)
        to_bias.index_add_(0, targets, -miss[:, 0])
        ctx.save_for_backward(to_hidden, to_weight, to_bias)
        return (total.log() - hit)[:count].sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = gradients
        to_hidden, to_weight, to_bias = ctx.saved_tensors
        return to_hidden * scale, to_weight * scale, to_bias * scale, None, None, None
