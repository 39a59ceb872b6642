"""Masks of attention heads and feed-forward blocks (Super Tickets, arXiv 2105.12002, section 3).

`one_shot` computes a mask from importance scores. The mask removes a share of all heads and of all blocks. At least one
head of each layer remains. This module does not import torch, because the gateway checks masks with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tlm_core.errors import InvalidRequest

Which = Literal["winning", "random", "losing"]


@dataclass(frozen=True)
class Importance:
    """Normalized importance of each head, [layers, heads], and of each feed-forward block, [layers]."""

    heads: npt.NDArray[np.float64]
    blocks: npt.NDArray[np.float64]

    def as_dict(self) -> dict[str, object]:
        return {"heads": self.heads.tolist(), "blocks": self.blocks.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Importance:
        return cls(np.asarray(data["heads"], dtype=np.float64), np.asarray(data["blocks"], dtype=np.float64))


@dataclass(frozen=True)
class Mask:
    """True for each head and block that stays. heads: [layers, heads]. blocks: [layers]."""

    heads: tuple[tuple[bool, ...], ...]
    blocks: tuple[bool, ...]

    @classmethod
    def full(cls, layers: int, heads: int) -> Mask:
        return cls(((True,) * heads,) * layers, (True,) * layers)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Mask:
        """Return the mask of `{"heads": [[…]], "blocks": […]}`, with true or 1 for each head and block that stays.

        Raises InvalidRequest for any other form, and for a layer without heads.
        """
        heads, blocks = data.get("heads"), data.get("blocks")
        if not (isinstance(heads, list | tuple) and heads and isinstance(blocks, list | tuple)) or not all(
            isinstance(row, list | tuple) for row in heads
        ):
            raise InvalidRequest(
                'Invalid mask. Expected {"heads": [a row of 0/1 for each layer], "blocks": [0/1 for each layer]}.'
            )
        values = [*(value for row in heads for value in row), *blocks]
        if invalid := [value for value in values if value not in (0, 1)]:  # True and False equal 1 and 0
            raise InvalidRequest(f"Invalid mask value {invalid[0]!r}. Each value must be 0, 1, false or true.")
        if len({len(row) for row in heads}) != 1 or len(blocks) != len(heads):
            raise InvalidRequest(
                "Invalid mask. Rows of 'heads' need equal lengths. 'blocks' needs one value for each row of 'heads'."
            )
        mask = cls(tuple(tuple(map(bool, row)) for row in heads), tuple(map(bool, blocks)))
        if empty := [number for number, row in enumerate(mask.heads) if not any(row)]:
            raise InvalidRequest(
                f"Invalid mask: layer {empty[0]} has no heads. Layers count from 0. Each layer needs at least one head."
            )
        return mask

    def check(self, layers: int, heads: int) -> None:
        """Raise InvalidRequest if the mask does not have `layers` layers with `heads` heads each."""
        own = (len(self.heads), len(self.heads[0]))
        if own != (layers, heads):
            raise InvalidRequest(
                f"Invalid mask: the mask has {own[0]} layers x {own[1]} heads, but the model has {layers} x {heads}. "
                "Use a mask of this model."
            )

    @property
    def heads_left(self) -> int:
        return sum(map(sum, self.heads))

    @property
    def blocks_left(self) -> int:
        return sum(self.blocks)


def removals(level: float, layers: int, heads: int) -> tuple[int, int]:
    """Return the numbers of heads and of blocks to remove: the share `level` of each, rounded down.

    Raises InvalidRequest for a level outside of [0, 1), or if fewer heads than layers would remain.
    """
    removed, blocks = math.floor(level * layers * heads + 1e-9), math.floor(level * layers + 1e-9)
    limit = layers * heads - layers
    if not 0.0 <= level < 1.0 or removed > limit:
        raise InvalidRequest(
            f"Invalid sparsity level {level:g}. Of {layers} layers x {heads} heads, at most {limit} heads can be "
            f"removed, because each layer needs a head. Use a level from 0 to {limit / (layers * heads):.3g}.",
            level=level,
        )
    return removed, blocks


def one_shot(importance: Importance, level: float, which: Which, seed: int = 0) -> Mask:
    """Return the mask that removes the share `level` of all heads and of all blocks.

    which: `winning` removes the least important heads and blocks, `losing` the most important, and `random` those that
    `seed` draws. Heads are ranked over all layers; equal scores are ordered by layer, then head. The last head of a
    layer is never removed: the next head in the ranking is removed instead.
    Raises InvalidRequest for a level that `removals` rejects.
    """
    layers, heads = importance.heads.shape
    head_count, block_count = removals(level, layers, heads)
    stays = np.ones((layers, heads), dtype=bool)
    for index in _order(importance.heads.ravel(), which, seed):
        layer, head = divmod(int(index), heads)
        if head_count and stays[layer].sum() > 1:
            stays[layer, head] = False
            head_count -= 1
    blocks = np.ones(layers, dtype=bool)
    blocks[_order(importance.blocks, which, seed + 1)[:block_count]] = False
    return Mask(tuple(tuple(row) for row in stays.tolist()), tuple(blocks.tolist()))


def _order(scores: npt.NDArray[np.float64], which: Which, seed: int) -> npt.NDArray[np.int64]:
    """Return the indices of `scores` in the order in which `which` removes them."""
    if which == "random":
        return np.random.default_rng(seed).permutation(len(scores))
    return np.argsort(scores if which == "winning" else -scores, kind="stable")
