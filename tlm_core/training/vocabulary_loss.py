"""Cross-entropy over the vocabulary, computed together with the matrix product that yields the logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

# Vocabulary entries per block. Their logits stay in a core's cache from one product to the next.
BLOCK = 1024
# Additional columns for the bias. One column would suffice, but products of an odd width take a third longer.
SPARE = 16


class VocabularyLoss(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T + bias` against `targets`.

    The forward pass computes loss and gradient together, in blocks of the vocabulary, with one exponential per logit.
    It does not subtract the largest logit, because float32 and bfloat16 can represent exp(88). With a larger logit, the
    loss is not finite. The gradient needs 1 - p, where p is the probability of the target. Near p = 1, a subtraction
    would lose precision, so the pass computes 1 - p from the exponentials of all other tokens.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, count: int, dtype: torch.dtype
    ) -> Tensor:
        """Return the loss in nats, summed over the first `count` of M positions. The other positions are padding.

        hidden: [M, H]. weight: [V, H]. bias: [V]. targets: [M], correct token ids. dtype: type of the matrix products.
        """
        x, w = hidden.to(dtype), weight.to(dtype)
        hit = (x.float() * w[targets].float()).sum(dim=1) + bias[targets]
        order = targets.argsort()
        ends = torch.arange(0, len(w) + BLOCK, BLOCK, device=x.device)
        bounds = torch.searchsorted(targets[order], ends).tolist()  # order[bounds[n] : bounds[n + 1]]: rows of block n
        others = torch.zeros_like(hit)
        to_hidden = torch.zeros(x.shape, device=x.device)  # float32, because it sums many terms
        exponentials = []
        for number, (block, shift) in enumerate(zip(w.split(BLOCK), bias.split(BLOCK), strict=True)):
            e = (x @ block.t()).float().add_(shift).exp_()  # exp takes half as long in float32 as in bfloat16
            rows = order[bounds[number] : bounds[number + 1]]
            e[rows, targets[rows] - number * BLOCK] = 0.0
            others += e.sum(dim=1, dtype=torch.float32)
            exponentials.append(e.to(dtype))
            to_hidden += exponentials[-1] @ block
        total = others + hit.exp()
        scale = total.reciprocal()
        scale[count:] = 0.0
        miss = (others * scale)[:, None]  # 1 - probability of the target
        to_hidden.mul_(scale[:, None]).sub_(miss * w[targets])
        # The bias is a weight of a constant input 1, so one product gives the gradients of weight and bias.
        size = x.shape[1]
        scaled = F.pad(torch.cat((x * scale[:, None], scale[:, None]), dim=1), (0, SPARE - 1)).to(dtype)
        to_weight, to_bias = torch.empty_like(weight), torch.empty_like(bias)
        for number, e in enumerate(exponentials):
            here = slice(number * BLOCK, (number + 1) * BLOCK)
            both = e.t() @ scaled
            to_weight[here], to_bias[here] = both[:, :size], both[:, size]
        # A frequent token is the target of many rows. Their sum in float32 would lose precision.
        unique, place = targets.unique(return_inverse=True)
        own = torch.zeros(len(unique), size + 1, dtype=torch.float64, device=x.device)
        own.index_add_(0, place, torch.cat((miss * x, miss), dim=1).double())
        to_weight[unique] = (to_weight[unique].double() - own[:, :size]).to(to_weight.dtype)
        to_bias[unique] = (to_bias[unique].double() - own[:, size]).to(to_bias.dtype)
        ctx.save_for_backward(to_hidden.to(hidden.dtype), to_weight, to_bias)
        return (total.log() - hit)[:count].sum()

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = gradients
        to_hidden, to_weight, to_bias = ctx.saved_tensors
        # The products are in place, because nothing else refers to these tensors. A second backward pass would raise.
        return to_hidden.mul_(scale), to_weight.mul_(scale), to_bias.mul_(scale), None, None, None
