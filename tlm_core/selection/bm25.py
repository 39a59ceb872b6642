"""The selector `bm25`: the union of the hits of all queries. Options limit hits per query, or let labels take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tlm_core.selection.candidates import CandidateFilter, with_texts
from tlm_core.selection.interface import Selected, SelectionInputs
from tlm_core.selection.retrieve import Positions, Retrieved, hits_by_label
from tlm_core.tasks.task import Task


def bm25(inputs: SelectionInputs, accept: CandidateFilter) -> Selected:
    """Select the passages that the queries hit, best rank first. Options limit hits per query, or balance labels."""
    retrieved, index, params = inputs.retrieve(), inputs.index, inputs.params
    if params.per_query_cap:
        accept.admits = query_cap(retrieved, params.per_query_cap)
    if not params.per_label_balance:
        return Selected(accept.batches(with_texts(index, retrieved.ranked(), params.max_passages)), retrieved)
    in_turns = with_texts(index, retrieved.ranked(label_turns(retrieved, inputs.task)), params.max_passages)
    positions = [candidate.position for batch in accept.batches(in_turns) for candidate in batch]
    return Selected(with_texts(index, retrieved.ranked(np.array(sorted(positions), np.int64)), None), retrieved)


def query_cap(retrieved: Retrieved, cap: int) -> Callable[[int], bool]:
    """Return a function that takes a position in `retrieved.ids` and returns whether to accept the passage.

    Each query starts with `cap` admissions. A passage uses one admission of the query that ranks the passage best among
    the queries with admissions left. If no query that hits the passage has admissions left, the result is False.
    """
    starts = np.searchsorted(retrieved.hit_position, np.arange(len(retrieved.ids) + 1))
    remaining = np.full(len(retrieved.query_rows), cap, np.int32)

    def admits(position: int) -> bool:
        queries = retrieved.hit_query[starts[position] : starts[position + 1]]
        open_queries = queries[remaining[queries] > 0]
        if not len(open_queries):
            return False
        remaining[open_queries[0]] -= 1
        return True

    return admits


def label_turns(retrieved: Retrieved, task: Task) -> Positions:
    """Return all positions in `retrieved.ids` in rounds. In each round, each label adds its best remaining passage."""
    by_rank = [positions[np.argsort(ranks, kind="stable")] for positions, ranks in hits_by_label(retrieved, task)]
    listed = np.zeros(len(retrieved.ids), np.bool_)
    order: list[int] = []

    def unlisted(positions: Positions) -> Iterator[int]:
        for position in positions.tolist():
            if not listed[position]:
                listed[position] = True
                yield position

    turns = [unlisted(positions) for positions in by_rank]
    while turns:
        drawn = [(turn, next(turn, None)) for turn in turns]
        order.extend(position for _, position in drawn if position is not None)
        turns = [turn for turn, position in drawn if position is not None]
    return np.array(order, np.int64)
