"""The blocks of tokens that see each other in a stream of sequences, for FlexAttention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

SMALLEST_HEAD = 16  # the smallest head of FlexAttention's kernels
BLOCK = 128  # tokens; FlexAttention computes whole blocks of scores


def block_mask(sequence: Tensor, begins: Tensor, window: int | None) -> BlockMask:
    """Return the mask of a stream of T tokens. A token attends to the tokens of its sequence within the window.

    sequence: [T], the number of each token's sequence. begins: [S + 1], the start of each sequence, then T. window:
    tokens on each side, or None for no limit.
    """
    tokens = len(sequence)
    blocks = -(-tokens // BLOCK)
    number = torch.arange(blocks, device=sequence.device)
    first, last = number * BLOCK, ((number + 1) * BLOCK - 1).clamp(max=tokens - 1)
    # The first and the last token of a block determine which range of blocks the block sees. In contrast,
    # `create_block_mask` would compare all pairs of tokens.
    low, high = begins[sequence[first]].long(), begins[sequence[last] + 1].long() - 1
    if window is not None:
        low, high = low.maximum(first - window), high.minimum(last + window)
    low, high = low // BLOCK, high // BLOCK
    # Columns after the last visible block are not read, but must exist.
    columns = (low[:, None] + number).clamp(max=blocks - 1)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        same = sequence[query] == sequence[key]
        return same if window is None else same & ((query - key).abs() <= window)

    return BlockMask.from_kv_blocks(
        (high - low + 1).int()[None, None],
        columns.int()[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(tokens, tokens),
    )
