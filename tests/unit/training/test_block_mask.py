"""The visible blocks of a stream are those that a comparison of all pairs of tokens gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tlm_core.training.block_mask import BLOCK, block_mask
from tlm_core.training.stream import StreamKernels


def stream(tokens: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `sequence` and `begins` of random sequences and, at the end, three empty ones."""
    random = np.random.default_rng(tokens)
    ends = np.cumsum(random.integers(1, longest + 1, tokens))
    begins = np.concatenate(([0], ends[ends < tokens], [tokens] * 4))
    sequence = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    return torch.from_numpy(sequence.astype(np.int32)), torch.from_numpy(begins.astype(np.int32))


@pytest.mark.parametrize(("tokens", "window"), [(1024, None), (1000, 40), (2048, 200), (130, None), (96, 8)])
def test_blocks_are_those_with_a_visible_pair(tokens: int, window: int | None) -> None:
    sequence, begins = stream(tokens, 300)
    mask = block_mask(sequence, begins, window)
    wanted = create_block_mask(mask.mask_mod, None, None, tokens, tokens, device="cpu", BLOCK_SIZE=BLOCK)
    assert mask.to_dense().equal(wanted.to_dense())
    visible = sequence[:, None] == sequence
    if window is not None:
        place = torch.arange(tokens)
        visible &= (place[:, None] - place).abs() <= window
    blocks = torch.nn.functional.pad(visible, (0, -tokens % BLOCK, 0, -tokens % BLOCK))
    blocks = blocks.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).any(1).any(-1)
    assert mask.to_dense()[0, 0].bool().equal(blocks)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_has_the_values_of_the_dense_form() -> None:
    sequence, begins = stream(256, 100)
    qkv = torch.randn(256, 3 * 2 * 16, generator=torch.Generator().manual_seed(0))
    plain = StreamKernels(sequence, begins, 100, 20, None)
    query, key, value = qkv.view(256, 3, 2, 16).permute(1, 2, 0, 3)[:, None]
    flexed = flex_attention(query, key, value, block_mask=block_mask(sequence, begins, 20))
    torch.testing.assert_close(flexed[0].transpose(0, 1).flatten(-2), plain.attend(qkv, 2, 0.0))
