"""The content of `selection.json`: counts of passages, sources, queries and leaks, and the overlap of labels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlm_core.selection.candidates import CandidateFilter
from tlm_core.selection.interface import Corpus, SelectionInputs
from tlm_core.selection.output import WrittenPassages
from tlm_core.selection.retrieve import Positions, Retrieved, hits_by_label
from tlm_core.tasks.task import Task

Facts = dict[str, Any]

_MAX_LISTED = 100
_MAX_LABELS = 64  # labels in the matrix of overlaps


def selection_facts(
    inputs: SelectionInputs, accept: CandidateFilter, written: WrittenPassages, retrieved: Retrieved | None
) -> Facts:
    """Return the content of `selection.json`. `queries`, `ranks` and `labels` are None if `retrieved` is None."""
    facts: Facts = {
        "selector": inputs.params.selector,
        "params": inputs.params.model_dump(mode="json"),
        "seed": inputs.seed,
        "passages": len(written.positions),
        "words": written.words,
        "leaks": {
            "passages": accept.leaking_passages,
            "texts": len({(leak.split, leak.row) for _, leak in accept.leaks}),
        },
        **_source_facts(written.sources),
        "queries": None,
        "ranks": None,
        "labels": None,
    }
    if isinstance(inputs.source, Corpus):
        corpus = inputs.source
        facts["corpus"] = {"name": corpus.name, "version": corpus.version, "passages": corpus.index.count()}
    if retrieved is not None:
        facts["queries"] = _query_facts(retrieved, accept, written)
        facts["ranks"] = np.bincount(retrieved.rank[written.positions])[1:].tolist() if facts["passages"] else []
        facts["labels"] = _label_facts(retrieved, inputs.task, written.positions)
    return facts


def _source_facts(counts: Counter[str]) -> Facts:
    """Return the 100 sources with the most passages, and the number of other sources.

    The list is limited because a corpus can have one source for each document.
    """
    total = counts.total()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    others = ranked[_MAX_LISTED:]
    return {
        "sources": [
            {"source": name, "passages": count, "share": round(count / total, 6)}
            for name, count in ranked[:_MAX_LISTED]
        ],
        "other_sources": {"sources": len(others), "passages": sum(count for _, count in others)},
    }


def _query_facts(retrieved: Retrieved, accept: CandidateFilter, written: WrittenPassages) -> Facts:
    selected = len(written.positions)
    without_hit = retrieved.rows_without_hit
    return {
        "train_rows": retrieved.train_rows,
        "without_hit": {"count": len(without_hit), "rows": without_hit[:_MAX_LISTED]},
        "candidates": len(retrieved.ids),
        "cut_by_query_cap": accept.capped,
        "cut_by_budget": len(retrieved.ids) - selected - accept.leaking_passages - accept.capped,
    }


def _label_facts(retrieved: Retrieved, task: Task, selected: Positions) -> Facts | None:
    """Return facts about the selected passages of each label, in the order of `names`; None for a regression task.

    A passage belongs to each label whose train rows retrieved it. `passages` has the number of passages of each label.
    `jaccard` has the Jaccard index of each pair of labels, or None with a `reason` for more than 64 labels.
    """
    if not task.type.has_classes:
        return None
    from scipy import sparse  # type: ignore[import-untyped, unused-ignore]

    is_selected = np.zeros(len(retrieved.ids), np.bool_)
    is_selected[selected] = True
    hits = [positions[is_selected[positions]] for positions, _ in hits_by_label(retrieved, task)]
    facts: Facts = {"names": list(task.labels), "passages": list(map(len, hits))}
    if len(hits) > _MAX_LABELS:
        return {**facts, "jaccard": None, "reason": f"The matrix is computed for up to {_MAX_LABELS} labels only."}
    starts = np.cumsum([0, *facts["passages"]])
    hit_once = np.ones(starts[-1], np.int64)
    matrix = sparse.csr_matrix((hit_once, np.concatenate(hits), starts), (len(hits), len(retrieved.ids)))
    return {**facts, "jaccard": _jaccard((matrix @ matrix.T).toarray())}


def _jaccard(intersections: NDArray[np.int64]) -> list[list[float | None]]:
    """Return intersection over union of each pair of labels, [labels, labels]; None if both labels have no passage."""
    sizes = intersections.diagonal()
    unions = sizes[:, None] + sizes[None, :] - intersections
    return [
        [round(both / either, 6) if either else None for both, either in zip(*row, strict=True)]
        for row in zip(intersections.tolist(), unions.tolist(), strict=True)
    ]
