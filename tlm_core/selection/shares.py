"""How the union is shared out among queries and labels, and how much the labels' finds overlap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlm_core.selection.retrieve import Retrieved
from tlm_core.tasks.task import Task

_MOST_LABELS = 64  # bits of a mask
_SLICE = 50_000

Places = NDArray[np.int64]


class QueryCap:
    """Lets a passage in if a query that asked for it has brought in fewer than `cap`; the best ranked is charged."""

    def __init__(self, found: Retrieved, cap: int) -> None:
        self._found = found
        self._starts = np.searchsorted(found.hit_place, np.arange(len(found.ids) + 1))
        self._left = np.full(len(found.asked_by), cap, np.int32)

    def __call__(self, place: int) -> bool:
        queries = self._found.hit_query[self._starts[place] : self._starts[place + 1]]
        with_room = queries[self._left[queries] > 0]
        if not len(with_room):
            return False
        self._left[with_room[0]] -= 1
        return True


def in_turns(found: Retrieved, task: Task) -> Places:
    """All places in an order in which each label in turn takes the best passage that its rows ask for and none has."""
    lists = [places[np.argsort(ranks, kind="stable")] for places, ranks in _by_label(found, task)]
    taken = np.zeros(len(found.ids), np.bool_)
    order: list[int] = []

    def untaken(places: Places) -> Iterator[int]:
        for place in places.tolist():
            if not taken[place]:
                taken[place] = True
                yield place

    turns = [untaken(places) for places in lists]
    while turns:
        going = []
        for turn in turns:
            place = next(turn, None)
            if place is not None:
                order.append(place)
                going.append(turn)
        turns = going
    return np.array(order, np.int64)


def label_facts(found: Retrieved, task: Task, kept: Places) -> dict[str, Any] | None:
    """Passages that each label's rows asked for, and the Jaccard index of any two labels' passages.

    Of tasks with many labels the matrix is left out, with the reason. None for a task without classes.
    """
    if not task.type.has_classes:
        return None
    is_kept = np.zeros(len(found.ids), np.bool_)
    is_kept[kept] = True
    facts: dict[str, Any] = {"names": list(task.labels), "passages": []}
    # A bit for each label that asked for a passage: passages by the thousand then have the same few values.
    masks = np.zeros(len(found.ids) if len(task.labels) <= _MOST_LABELS else 0, np.uint64)
    for label, (places, _) in enumerate(_by_label(found, task)):
        places = places[is_kept[places]]
        facts["passages"].append(len(places))
        if len(masks):
            masks[places] |= np.uint64(1 << label)
    if len(task.labels) > _MOST_LABELS:
        return {**facts, "jaccard": None, "reason": f"only computed for up to {_MOST_LABELS} labels"}
    return {**facts, "jaccard": _jaccard(_common(masks, len(task.labels)))}


def _common(masks: NDArray[np.uint64], labels: int) -> NDArray[np.int64]:
    """[labels, labels]: passages that both labels asked for."""
    common = np.zeros((labels, labels), np.int64)
    values, counts = np.unique(masks, return_counts=True)
    for start in range(0, len(values), _SLICE):
        part = slice(start, start + _SLICE)
        bits = ((values[part, None] >> np.arange(labels, dtype=np.uint64)) & np.uint64(1)).astype(np.int64)
        common += (bits * counts[part, None]).T @ bits
    return common


def _jaccard(common: NDArray[np.int64]) -> list[list[float | None]]:
    """Common over united; None where neither label asked for anything."""
    own = common.diagonal()
    united = own[:, None] + own[None, :] - common
    return [
        [round(both / either, 6) if either else None for both, either in zip(*row, strict=True)]
        for row in zip(common.tolist(), united.tolist(), strict=True)
    ]


def rank_counts(ranks: NDArray[np.int32]) -> list[int]:
    """How many passages have best rank 1, 2, and so on."""
    counts: list[int] = np.bincount(ranks)[1:].tolist() if len(ranks) else []
    return counts


def _by_label(found: Retrieved, task: Task) -> Iterator[tuple[Places, NDArray[np.int32]]]:
    """For each label the places that its rows asked for, rising, and their best ranks there."""
    label_of_row = dict(zip(task.rows("train").tolist(), task.label_ids("train").tolist(), strict=True))
    labels_of_query = [{label_of_row[row] for row in rows} for rows in found.asked_by]
    for label in range(len(task.labels)):
        asks = np.array([label in labels for labels in labels_of_query], np.bool_)
        hits = np.flatnonzero(asks[found.hit_query]) if len(asks) else np.empty(0, np.int64)
        # Hits lie by place, then rank: the first of each place is its best.
        places, firsts = np.unique(found.hit_place[hits], return_index=True)
        yield places.astype(np.int64), found.hit_rank[hits][firsts]
