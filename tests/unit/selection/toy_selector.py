"""A selector that a test adds to the table: the shortest passages first."""

from __future__ import annotations

from tlm_core.selection.candidates import CandidateFilter, Ranked, with_texts
from tlm_core.selection.interface import Selected, SelectionInputs
from tlm_core.selection.selectors import Selector


def shortest_first(inputs: SelectionInputs, accept: CandidateFilter) -> Selected:
    passages = (passage for ids in inputs.index.ids() for passage in inputs.index.fetch(ids).values())
    ordered = sorted(passages, key=lambda passage: (len(passage.text), passage.id))
    ranked = (Ranked(position, passage.id, position + 1, None) for position, passage in enumerate(ordered))
    return Selected(accept.batches(with_texts(inputs.index, ranked, inputs.params.max_passages)))


SHORTEST = Selector(
    f"{__name__}:shortest_first", summary="the shortest passages first", origin="the shortest ones", size="source"
)
