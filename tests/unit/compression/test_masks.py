"""Masks compared with a plain sort, and invalid masks."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlm_core.compression.masks import Importance, Mask, Which, one_shot, removals
from tlm_core.errors import InvalidRequest


def random_importance(layers: int, heads: int, seed: int = 0) -> Importance:
    random = np.random.default_rng(seed)
    # Few distinct values, so that ties occur.
    return Importance(random.integers(0, 4, (layers, heads)) / 4, random.integers(0, 3, layers) / 3)


def naive(importance: Importance, heads: int, blocks: int, *, least_first: bool) -> Mask:
    """Remove heads in the order of importance until enough are removed; the last head of a layer stays."""
    layers, per = importance.heads.shape
    sign = 1 if least_first else -1
    stays = [[True] * per for _ in range(layers)]
    ranked = sorted((sign * importance.heads[i, j], i, j) for i in range(layers) for j in range(per))
    for _, layer, head in ranked:
        if heads and sum(stays[layer]) > 1:
            stays[layer][head] = False
            heads -= 1
    removed = {layer for _, layer in sorted((sign * importance.blocks[i], i) for i in range(layers))[:blocks]}
    return Mask(tuple(map(tuple, stays)), tuple(i not in removed for i in range(layers)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.floats(0, 0.99), st.integers(0, 9))
def test_winning_and_losing_masks_match_plain_sort(layers: int, heads: int, level: float, seed: int) -> None:
    importance = random_importance(layers, heads, seed)
    try:
        count, blocks = removals(level, layers, heads)
    except InvalidRequest:
        assert int(level * layers * heads) > layers * heads - layers
        return
    assert one_shot(importance, level, "winning") == naive(importance, count, blocks, least_first=True)
    assert one_shot(importance, level, "losing") == naive(importance, count, blocks, least_first=False)


@pytest.mark.parametrize("which", get_args(Which))
@pytest.mark.parametrize("level", [0.0, 0.1, 0.35, 0.75])
def test_ticket_removes_its_level_and_leaves_heads_in_each_layer(which: Which, level: float) -> None:
    mask = one_shot(random_importance(6, 4), level, which, seed=5)
    assert (24 - mask.heads_left, 6 - mask.blocks_left) == removals(level, 6, 4)
    assert all(any(row) for row in mask.heads)


def test_random_tickets_depend_on_seed() -> None:
    importance = random_importance(6, 8)
    assert one_shot(importance, 0.5, "random", 1) == one_shot(importance, 0.5, "random", 1)
    assert len({one_shot(importance, 0.5, "random", seed) for seed in range(10)}) == 10


def test_published_levels_give_published_head_counts() -> None:
    counts = [removals(level / 10, 12, 12)[0] for level in range(1, 9)]
    assert counts == [14, 28, 43, 57, 72, 86, 100, 115]


@pytest.mark.parametrize("level", [0.8, 1.0, -0.1])
def test_level_that_empties_a_layer_is_rejected_with_the_limit(level: float) -> None:
    with pytest.raises(InvalidRequest, match=r"at most 6 heads can be removed.* from 0 to 0\.667\."):
        removals(level, 3, 3)


def test_mask_survives_json_round_trip() -> None:
    mask = one_shot(random_importance(3, 4), 0.4, "winning")
    assert Mask.from_dict(mask.as_dict()) == mask
    integers = {"heads": [list(map(int, row)) for row in mask.heads], "blocks": list(map(int, mask.blocks))}
    assert Mask.from_dict(integers) == mask


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "Invalid mask. Expected"),
        ({"heads": [[1, 1]], "blocks": 1}, "Invalid mask. Expected"),
        ({"heads": [[1, 2]], "blocks": [1]}, "Invalid mask value 2. Each value must be 0, 1"),
        ({"heads": [[1, 1], [1]], "blocks": [1, 1]}, "need equal lengths"),
        ({"heads": [[1, 1]], "blocks": [1, 1]}, "one value for each row"),
        ({"heads": [[1, 1], [0, 0]], "blocks": [1, 1]}, "layer 1 has no heads"),
    ],
)
def test_invalid_mask_is_rejected(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Mask.from_dict(data)


def test_mask_of_other_shape_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match="2 layers x 4 heads, but the model has 3 x 4"):
        Mask.full(2, 4).check(3, 4)
