"""Cross-entropy over the vocabulary, fused with the matrix product before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows of logits held at once: few enough to stay in a core's cache, enough to keep matrix products busy.
CHUNK = 256


class VocabularyLoss(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T + bias` against `targets`.

    The gradient is computed along with the loss, chunk by chunk, so the [M, V] logits never exist as a whole:
    half the time and a fraction of the memory of the plain way. A token's loss saturates where its
    probability leaves the range of float32 (87 nats).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, count: int, dtype: torch.dtype
    ) -> Tensor:
        """hidden: [M, H]; weight: [V, H]; bias: [V]; targets: [M], of which `count` count; dtype: of the products."""
        x, w, b = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
        to_hidden = torch.empty_like(x)
        to_weight, to_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        loss = torch.zeros((), device=x.device)
        for begin in range(0, len(x), CHUNK):
            here = slice(begin, begin + CHUNK)
            chunk, target = x[here], targets[here]
            row = torch.arange(len(target), device=x.device)
            p = torch.addmm(b, chunk, w.t()).softmax(dim=1, dtype=dtype)
            hit = p[row, target].float()
            loss -= hit[: max(0, count - begin)].clamp_min(torch.finfo(torch.float32).tiny).log().sum()
            p[row, target] = (hit - 1.0).to(dtype)  # p is now the gradient by the logits
            p[max(0, count - begin) :] = 0.0
            torch.mm(p, w, out=to_hidden[here])
            to_weight += p.t() @ chunk
            to_bias += (p.new_ones(1, len(p)) @ p)[0]
        ctx.save_for_backward(to_hidden, to_weight, to_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_weight, to_bias = ctx.saved_tensors
        (scale,) = gradients
        return to_hidden.float() * scale, to_weight * scale, to_bias * scale, None, None, None
