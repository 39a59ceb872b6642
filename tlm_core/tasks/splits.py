"""Cut validation and test from train: stratified, seeded, and with all copies of a text in one split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PARTS = 10  # each split that is cut from train gets a share of 1 / PARTS


def cut_splits(
    labels: NDArray[np.int32], keys: NDArray[np.int64], missing: Sequence[str], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Divide the rows of train. Return split → sorted positions of its rows, for train and each of `missing`.

    labels, keys: [rows]. Rows with equal keys are copies of one text. For regression, `labels` are the `bands`.
    missing: "validation", "test" or both. Each of these splits gets a tenth of the rows.

    All copies of a text are in one split, and count as rows with the label of the first copy. Each label has about the
    same share in each split, and at least one text in train. If a split is too small for all labels with fewer than
    ten rows, it prefers labels that no earlier split of `missing` has. The seed breaks ties. Equal arguments give equal
    splits on any machine.
    """
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    sizes = np.bincount(group)
    group_labels = labels[first]
    # The stream of RandomState never changes between versions of numpy. Groups are in order of first appearance,
    # because the order of the keys has no meaning.
    random = np.random.RandomState(seed)
    order = np.argsort(first, kind="stable")
    order = order[random.permutation(len(order))]
    split_of = np.full(len(sizes), "train", dtype="U10")
    assigned = np.zeros(len(sizes), dtype=np.bool_)
    rows = np.bincount(labels)
    drawn = random.permutation(len(rows))
    of_label = np.bincount(group_labels, minlength=len(rows))
    order = order[np.argsort(group_labels[order], kind="stable")]
    by_label = np.split(order, np.cumsum(of_label)[:-1])
    spare = of_label - 1
    served = np.zeros(len(rows), dtype=np.bool_)
    for split in missing:
        singles = np.bincount(group_labels[~assigned & (sizes == 1)], minlength=len(rows))
        quotas = _quotas(rows, (spare > 0) & (singles > 0), served, drawn)
        served |= quotas > 0
        for label, quota in enumerate(quotas.tolist()):
            for index in by_label[label]:
                if quota <= 0 or spare[label] <= 0:
                    break
                if not assigned[index] and sizes[index] <= quota:
                    split_of[index], assigned[index] = split, True
                    quota -= int(sizes[index])
                    spare[label] -= 1
    by_row = split_of[group]
    return {split: np.flatnonzero(by_row == split) for split in ("train", *missing)}


def _quotas(
    rows: NDArray[np.int64], able: NDArray[np.bool_], served: NDArray[np.bool_], drawn: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return how many rows of each label a split gets, [labels]: a tenth of `rows`, rounded down.

    The labels with the largest remainders get one more row, so that the total is a tenth of all rows. A label is rare
    if it has fewer than PARTS rows. Labels with equal remainders come in this order: rare and in no earlier split; rare
    and in an earlier split (`served`); not rare; rare and without a row to give (not `able`). `drawn` breaks the ties
    of rare labels. All arrays: [labels]. rows: the number of rows of each label.
    """
    quotas, remainders = np.divmod(rows, PARTS)
    rest = max(1, round(int(rows.sum()) / PARTS)) - int(quotas.sum())
    few = rows < PARTS
    places = np.where(few, np.where(able, served, 3), 2)
    # Rounding errors break the ties of labels with PARTS rows or more, so that the splits of old datasets stay equal.
    ties = np.where(few, drawn, quotas - rows * 0.1)
    quotas[np.lexsort((ties, places, -remainders))[: max(0, rest)]] += 1
    return quotas


def bands(targets: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return the index of the quantile band of each target, [rows], for stratification: ten bands from 200 rows on."""
    count = max(1, min(10, len(targets) // 20))  # each band needs enough rows for a tenth of them
    edges = np.quantile(targets, np.arange(1, count) / count)
    return np.searchsorted(edges, targets, side="right").astype(np.int32)
