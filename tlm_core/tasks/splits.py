"""Cutting validation and test from train: stratified, seeded, all copies of a text on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PARTS = 10  # a split that has to be cut gets one of so many


def cut_splits(
    labels: NDArray[np.int32], keys: NDArray[np.int64], missing: Sequence[str], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Positions of the train rows that go to each split, sorted; each of `missing` gets a tenth of them.

    labels, keys: (rows,); for regression targets pass `bands`. Rows with equal keys are copies of one text and
    stay together, under the label of the first. missing: of "validation" and "test". Each label keeps its share in each
    split as far as whole texts allow, and at least one text in train. Of labels that have an equal claim to a row of
    their own the seed draws some, and the next split takes the others first. The same arguments give the same splits
    on any machine.
    """
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    sizes = np.bincount(group)
    group_labels = labels[first]
    # RandomState, because its stream is guaranteed never to change between versions of numpy. Groups are
    # taken in order of first appearance: the order of the keys means nothing.
    random = np.random.RandomState(seed)
    order = np.argsort(first, kind="stable")
    order = order[random.permutation(len(order))]
    side = np.full(len(sizes), "train", dtype="U10")
    taken = np.zeros(len(sizes), dtype=np.bool_)
    rows = np.bincount(labels)
    drawn = random.permutation(len(rows))
    of_label = np.bincount(group_labels, minlength=len(rows))
    order = order[np.argsort(group_labels[order], kind="stable")]
    by_label = np.split(order, np.cumsum(of_label)[:-1])
    spare = of_label - 1
    asked = np.zeros(len(rows), dtype=np.bool_)
    for split in missing:
        singles = np.bincount(group_labels[~taken & (sizes == 1)], minlength=len(rows))
        quotas = _quotas(rows, (spare > 0) & (singles > 0), asked, drawn)
        asked |= quotas > 0
        for label, quota in enumerate(quotas.tolist()):
            for index in by_label[label]:
                if quota <= 0 or spare[label] <= 0:
                    break
                if not taken[index] and sizes[index] <= quota:
                    side[index], taken[index] = split, True
                    quota -= int(sizes[index])
                    spare[label] -= 1
    by_row = side[group]
    return {split: np.flatnonzero(by_row == split) for split in ("train", *missing)}


def _quotas(
    rows: NDArray[np.int64], able: NDArray[np.bool_], asked: NDArray[np.bool_], drawn: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rows of each label that make up its part of a split: rounded down, the rest by largest remainder.

    Of equal remainders those come first of whose label the split has no row otherwise, as drawn, labels that an
    earlier split asked after the others and labels that are not able to give a single row last.
    """
    quotas, remainders = np.divmod(rows, PARTS)
    rest = max(1, round(int(rows.sum()) / PARTS)) - int(quotas.sum())
    few = rows < PARTS
    places = np.where(few, np.where(able, asked, 3), 2)
    # Among labels with rows enough rounding errors decide, then their order: it has always been so, and data sets
    # that were cut before keep their splits.
    ties = np.where(few, drawn, quotas - rows * 0.1)
    quotas[np.lexsort((ties, places, -remainders))[: max(0, rest)]] += 1
    return quotas


def bands(targets: NDArray[np.float64]) -> NDArray[np.int32]:
    """(rows,) the band of each regression target, to stratify by: ten bands, fewer for few rows."""
    count = max(1, min(10, len(targets) // 20))  # of each a tenth has to be some rows
    edges = np.quantile(targets, np.arange(1, count) / count)
    found: NDArray[np.int32] = np.searchsorted(edges, targets, side="right").astype(np.int32)
    return found
