"""Cutting validation and test from train: stratified, seeded, all copies of a text on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHARE = 0.1


def cut_splits(
    labels: NDArray[np.int32], keys: NDArray[np.int64], missing: Sequence[str], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Positions of the train rows that go to each split, sorted; each of `missing` gets a tenth of them.

    labels, keys: (rows,); amounts go in as numbers of their `bands`. Rows with equal keys are copies of one text and
    stay together, under the label of the first. missing: of "validation" and "test". Each label keeps its share in each
    split as far as whole texts allow, and at least one text in train. The same arguments give the same
    splits on any machine.
    """
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    sizes = np.bincount(group)
    group_labels = labels[first]
    # RandomState, because its stream is guaranteed never to change between versions of numpy. Groups are
    # taken in order of first appearance: the order of the keys means nothing.
    order = np.argsort(first, kind="stable")
    order = order[np.random.RandomState(seed).permutation(len(order))]
    side = np.full(len(sizes), "train", dtype="U10")
    taken = np.zeros(len(sizes), dtype=np.bool_)
    of_label = np.bincount(group_labels, minlength=int(labels.max(initial=0)) + 1)
    order = order[np.argsort(group_labels[order], kind="stable")]
    by_label = np.split(order, np.cumsum(of_label)[:-1])
    spare = of_label - 1
    for split in missing:
        for label, quota in enumerate(_quotas(labels, SHARE)):
            for index in by_label[label]:
                if quota <= 0 or spare[label] <= 0:
                    break
                if not taken[index] and sizes[index] <= quota:
                    side[index], taken[index] = split, True
                    quota -= int(sizes[index])
                    spare[label] -= 1
    by_row = side[group]
    return {split: np.flatnonzero(by_row == split) for split in ("train", *missing)}


def _quotas(labels: NDArray[np.int32], share: float) -> list[int]:
    """Rows of each label that make up `share` of all: rounded down, the rest by largest remainder."""
    exact = np.bincount(labels) * share
    quotas = np.floor(exact).astype(np.int64)
    rest = max(1, round(len(labels) * share)) - int(quotas.sum())
    for label in np.argsort(-(exact - quotas), kind="stable")[: max(0, rest)]:
        quotas[label] += 1
    return [int(quota) for quota in quotas]


def bands(amounts: NDArray[np.float64]) -> NDArray[np.int32]:
    """(rows,) in which band of amounts each lies, so that splits have like ones: ten bands, fewer for few rows."""
    count = max(1, min(10, len(amounts) // 20))  # of each a tenth has to be some rows
    edges = np.quantile(amounts, np.arange(1, count) / count)
    found: NDArray[np.int32] = np.searchsorted(edges, amounts, side="right").astype(np.int32)
    return found
