"""Masks of attention heads and feed-forward blocks (Super Tickets, arXiv 2105.12002, section 3).

`one_shot` computes a mask from importance scores. It removes a share of all heads and of all blocks, and each layer
keeps at least one head. This module does not import torch, because the gateway checks masks with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from tlm_core.errors import InvalidRequest

Which = Literal["winning", "random", "losing"]
TICKETS: tuple[str, ...] = get_args(Which)


@dataclass(frozen=True)
class Importance:
    """Normalized importance of each head, [layers, heads], and of each feed-forward block, [layers]."""

    heads: npt.NDArray[np.float64]
    blocks: npt.NDArray[np.float64]

    def as_dict(self) -> dict[str, Any]:
        return {"heads": self.heads.tolist(), "blocks": self.blocks.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Importance:
        return cls(np.asarray(data["heads"], dtype=np.float64), np.asarray(data["blocks"], dtype=np.float64))


@dataclass(frozen=True)
class Mask:
    """True for each part that stays. heads: one row for each layer. blocks: one entry for each layer."""

    heads: tuple[tuple[bool, ...], ...]
    blocks: tuple[bool, ...]

    @classmethod
    def full(cls, layers: int, heads: int) -> Mask:
        return cls(((True,) * heads,) * layers, (True,) * layers)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Mask:
        """From the JSON form `{"heads": [[…]], "blocks": […]}` with true or 1 for what is kept.

        Raises InvalidRequest for any other form, and for a layer that keeps no head.
        """
        heads, blocks = data.get("heads"), data.get("blocks")
        rows = isinstance(heads, Sequence) and bool(heads) and all(isinstance(row, Sequence) for row in heads)
        if not rows or not isinstance(blocks, Sequence):
            raise InvalidRequest('a mask is {"heads": [one row of 0/1 for each layer], "blocks": [0/1 for each layer]}')
        assert isinstance(heads, Sequence)
        values = [*(value for row in heads for value in row), *blocks]
        if any(value not in (0, 1) for value in values):  # True and False equal 1 and 0
            raise InvalidRequest("a mask holds only 0 and 1 (or false and true)")
        if len({len(row) for row in heads}) != 1 or len(blocks) != len(heads):
            raise InvalidRequest("a mask needs equally many heads in each layer, and one block for each layer")
        mask = cls(tuple(tuple(map(bool, row)) for row in heads), tuple(map(bool, blocks)))
        empty = [number for number, row in enumerate(mask.heads) if not any(row)]
        if empty:
            raise InvalidRequest(f"the mask leaves layer {empty[0]} without a head; keep at least one in each layer")
        return mask

    def check(self, layers: int, heads: int) -> None:
        """Raises InvalidRequest unless the mask is of a model with so many layers and heads."""
        own = (len(self.heads), len(self.heads[0]))
        if own != (layers, heads):
            raise InvalidRequest(
                f"the mask is of a model with {own[0]} layers x {own[1]} heads; this one has {layers} x {heads}"
            )

    @property
    def heads_left(self) -> int:
        return sum(map(sum, self.heads))

    @property
    def blocks_left(self) -> int:
        return sum(self.blocks)


def removals(level: float, layers: int, heads: int) -> tuple[int, int]:
    """Return the numbers of heads and blocks that a sparsity `level` in [0, 1) removes, rounded down.

    Raises InvalidRequest if a layer would lose all of its heads.
    """
    gone, blocks = math.floor(level * layers * heads + 1e-9), math.floor(level * layers + 1e-9)
    most = layers * heads - layers
    if not 0.0 <= level < 1.0 or gone > most:
        raise InvalidRequest(
            f"sparsity {level:g} would leave a layer without a head: {layers} layers x {heads} heads can lose at most "
            f"{most} heads ({most / (layers * heads):.3g}); give lower levels",
            level=level,
        )
    return gone, blocks


def one_shot(importance: Importance, level: float, which: str, seed: int = 0) -> Mask:
    """Return the mask at a sparsity level. winning removes the least important parts, losing the most important.

    Heads are ranked over all layers. The last head of a layer stays, and the next one is removed instead. Equal scores
    are ordered by layer, then head. random draws without replacement and depends on the seed alone.
    Raises InvalidRequest where `removals` does, ValueError for an unknown `which`.
    """
    layers, heads = importance.heads.shape
    head_count, block_count = removals(level, layers, heads)
    head_order = _order(importance.heads.ravel(), which, seed)
    left = np.full(layers, heads)
    kept = np.ones((layers, heads), dtype=bool)
    for index in head_order:
        layer, head = divmod(int(index), heads)
        if not head_count:
            break
        if left[layer] > 1:
            kept[layer, head] = False
            left[layer] -= 1
            head_count -= 1
    blocks = np.ones(layers, dtype=bool)
    blocks[_order(importance.blocks, which, seed + 1)[:block_count]] = False
    return Mask(tuple(tuple(row) for row in kept.tolist()), tuple(blocks.tolist()))


def _order(scores: npt.NDArray[np.float64], which: str, seed: int) -> npt.NDArray[np.int64]:
    """Return the indices in the order of their removal."""
    match which:
        case "winning":
            return np.argsort(scores, kind="stable")
        case "losing":
            return np.argsort(-scores, kind="stable")
        case "random":
            return np.random.default_rng(seed).permutation(len(scores))
    raise ValueError(f"unknown ticket '{which}'; known are {', '.join(TICKETS)}")
