"""Values and gradients of the kernels, against the plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tlm_core.training.kernels import GatedLinear, Heads, RowKernels
from tlm_core.training.model import rotation


def random_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)


def test_rotation_applies_to_queries_and_keys_only() -> None:
    qkv = random_tensor(2, 7, 3, 5, 8)
    cos, sin = rotation(7, 8, 10_000.0, torch.device("cpu"), torch.float64)
    heads = Heads.apply(qkv, (cos, sin))
    query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
    for turned, x in zip(heads, (query, key), strict=False):
        pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(cos[:, :4], sin[:, :4])
        torch.testing.assert_close(turned, torch.cat((pairs.real, pairs.imag), dim=-1))
    torch.testing.assert_close(heads[2], value)
    assert all(part.is_contiguous() for part in heads)
    assert torch.autograd.gradcheck(lambda x: Heads.apply(x, (cos, sin)), qkv)


def test_heads_without_rotation_are_only_split() -> None:
    qkv = random_tensor(2, 3, 3, 2, 4)
    for head, part in zip(Heads.apply(qkv, None), qkv.unbind(2), strict=True):
        torch.testing.assert_close(head, part.transpose(1, 2))
    assert torch.autograd.gradcheck(lambda x: Heads.apply(x, None), qkv)


@pytest.mark.parametrize("rotary", [False, True])
def test_attention_matches_the_fused_kernel_and_masks_gradients(rotary: bool) -> None:
    qkv = random_tensor(2, 6, 3 * 8)
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 3, 3]])
    together = segments[:, None, :, None] == segments[:, None, None, :]
    turn = rotation(6, 4, 10_000.0, torch.device("cpu"), torch.float64) if rotary else None
    attended = RowKernels(~together, turn, torch.float64).attend(qkv, 2, 0.0)
    query, key, value = Heads.apply(qkv.unflatten(-1, (3, 2, 4)), turn)
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=together)
    torch.testing.assert_close(attended, wanted.transpose(1, 2).flatten(-2))
    (slope,) = torch.autograd.grad(attended.sum(), qkv, retain_graph=True)
    torch.testing.assert_close(slope, torch.autograd.grad(wanted.sum(), qkv)[0])
    (of_one,) = torch.autograd.grad(attended[0, :3].sum(), qkv)
    assert of_one[0, :3].any() and not of_one[0, 3:].any() and not of_one[1].any()


def test_gated_linear_matches_its_formula() -> None:
    x, weight = random_tensor(3, 5, 4), random_tensor(12, 4)
    value, gate = F.linear(x, weight).chunk(2, dim=-1)
    torch.testing.assert_close(GatedLinear.apply(x, weight, torch.float64), F.gelu(value) * gate)
    assert torch.autograd.gradcheck(lambda x, weight: GatedLinear.apply(x, weight, torch.float64), (x, weight))


def test_bfloat16_gated_linear_returns_gradients_in_input_types() -> None:
    x, weight = (random_tensor(*shape).detach().float().requires_grad_() for shape in ((3, 5, 4), (12, 4)))
    y = GatedLinear.apply(x, weight, torch.bfloat16)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and weight.grad is not None
    assert x.grad.dtype == weight.grad.dtype == torch.float32
