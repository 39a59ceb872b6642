"""Masks against a plain sort, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlm_core.compression.masks import TICKETS, Importance, Mask, one_shot, removals
from tlm_core.errors import InvalidRequest


def made(layers: int, heads: int, seed: int = 0) -> Importance:
    random = np.random.default_rng(seed)
    # Few different values, so that ties occur.
    return Importance(random.integers(0, 4, (layers, heads)) / 4, random.integers(0, 3, layers) / 3)


def naive(importance: Importance, heads: int, blocks: int, *, least_first: bool) -> Mask:
    """The rule read aloud: walk the heads from the least to the most important, drop until enough are gone."""
    layers, per = importance.heads.shape
    sign = 1 if least_first else -1
    kept = [[True] * per for _ in range(layers)]
    ranked = sorted((sign * importance.heads[i, j], i, j) for i in range(layers) for j in range(per))
    for _, layer, head in ranked:
        if heads and sum(kept[layer]) > 1:
            kept[layer][head] = False
            heads -= 1
    gone = {layer for _, layer in sorted((sign * importance.blocks[i], i) for i in range(layers))[:blocks]}
    return Mask(tuple(map(tuple, kept)), tuple(i not in gone for i in range(layers)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.floats(0, 0.99), st.integers(0, 9))
def test_winning_and_losing_masks_are_those_of_a_naive_sort(layers: int, heads: int, level: float, seed: int) -> None:
    importance = made(layers, heads, seed)
    try:
        gone, blocks = removals(level, layers, heads)
    except InvalidRequest:
        assert int(level * layers * heads) > layers * heads - layers
        return
    assert one_shot(importance, level, "winning") == naive(importance, gone, blocks, least_first=True)
    assert one_shot(importance, level, "losing") == naive(importance, gone, blocks, least_first=False)


@pytest.mark.parametrize("which", TICKETS)
@pytest.mark.parametrize("level", [0.0, 0.1, 0.35, 0.75])
def test_every_ticket_loses_exactly_its_level_and_keeps_a_head_in_each_layer(which: str, level: float) -> None:
    mask = one_shot(made(6, 4), level, which, seed=5)
    assert (24 - mask.heads_left, 6 - mask.blocks_left) == removals(level, 6, 4)
    assert all(any(row) for row in mask.heads)


def test_random_tickets_follow_their_seed() -> None:
    importance = made(6, 8)
    assert one_shot(importance, 0.5, "random", 1) == one_shot(importance, 0.5, "random", 1)
    assert len({one_shot(importance, 0.5, "random", seed) for seed in range(10)}) == 10


def test_the_share_of_the_published_levels_gives_the_published_head_counts() -> None:
    counts = [removals(level / 10, 12, 12)[0] for level in range(1, 9)]
    assert counts == [14, 28, 43, 57, 72, 86, 100, 115]


@pytest.mark.parametrize("level", [0.8, 1.0, -0.1])
def test_a_level_that_would_empty_a_layer_is_refused_with_the_most_that_can_go(level: float) -> None:
    with pytest.raises(InvalidRequest, match=r"can lose at most 6 heads \(0\.667\)"):
        removals(level, 3, 3)


def test_a_mask_survives_its_json_form() -> None:
    mask = one_shot(made(3, 4), 0.4, "winning")
    assert Mask.from_dict(mask.as_dict()) == mask
    ones = {"heads": [[int(kept) for kept in row] for row in mask.heads], "blocks": list(map(int, mask.blocks))}
    assert Mask.from_dict(ones) == mask


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({}, "a mask is"),
        ({"heads": [[1, 1]], "blocks": 1}, "a mask is"),
        ({"heads": [[1, 2]], "blocks": [1]}, "only 0 and 1"),
        ({"heads": [[1, 1], [1]], "blocks": [1, 1]}, "equally many heads"),
        ({"heads": [[1, 1]], "blocks": [1, 1]}, "one block for each layer"),
        ({"heads": [[1, 1], [0, 0]], "blocks": [1, 1]}, "leaves layer 1 without a head"),
    ],
)
def test_a_mask_file_of_another_form_is_refused(data: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        Mask.from_dict(data)


def test_a_mask_of_another_model_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="of a model with 2 layers x 4 heads; this one has 3 x 4"):
        Mask.full(2, 4).check(3, 4)
