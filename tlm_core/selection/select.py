"""The `select` stage: from a task and a corpus to the files of a selection (paper section 3.1).

Files: `passages.parquet` (id, text, source, rank, score; by rank, then id), `provenance.parquet` (passage_id,
train_row, rank, score), `leaks.parquet` (passage_id, split, row, rule) and `selection.json`. The same task, corpus
version and parameters give the same bytes, even if the stage is interrupted and resumes.
"""

from __future__ import annotations

import json
import pkgutil
from pathlib import Path
from typing import Any

from tlm_core.artifacts import storage_errors
from tlm_core.corpus.leaks import LeakFilter
from tlm_core.errors import InvalidRecipe
from tlm_core.selection.candidates import CandidateFilter
from tlm_core.selection.facts import selection_facts
from tlm_core.selection.interface import Corpus, SelectFunction, SelectionInputs
from tlm_core.selection.output import write_leaks, write_passages, write_provenance
from tlm_core.selection.queries import held_out_texts
from tlm_core.selection.retrieve import Progress
from tlm_core.selection.selectors import Selection
from tlm_core.tasks.task import Task


@storage_errors("writing the selection")
def select(
    task: Task,
    source: Corpus | Path | None,
    params: Selection,
    folder: Path,
    *,
    seed: int,
    scratch: Path,
    progress: Progress = lambda _done, _total, _unit: None,
) -> dict[str, Any]:
    """Write the selection for `task` to `folder` and return the content of its `selection.json`.

    Validation and test texts are never queries. Only the leak filter reads them.

    source: the corpus, the file that `given.write_given` wrote, or None, as the selector requires.
    scratch: folder for partial results, which the caller deletes. A later call with equal arguments resumes from them.

    Raises EmptySelection if no passage is selected, InvalidRecipe, StorageFull, StorageUnavailable, and the errors of
    the index.
    """
    if params.per_label_balance and not task.type.has_classes:
        raise InvalidRecipe(
            f"selection.per_label_balance needs classes, but task '{task.name}' is a regression task. "
            "Remove selection.per_label_balance."
        )
    folder.mkdir(parents=True, exist_ok=True)
    latest = (0, 0, "passages")

    def report(done: int, total: int, unit: str) -> None:
        nonlocal latest
        latest = (done, total, unit)
        progress(*latest)

    leak_filter = LeakFilter(held_out_texts(task)) if params.leak_filter else None
    accept = CandidateFilter(leak_filter, params.max_passages, params.max_tokens)
    inputs = SelectionInputs(task, source, params, seed, scratch, report)
    function: SelectFunction = pkgutil.resolve_name(params.definition.function)
    batches, retrieved = function(inputs, accept)
    # The work between two batches has no count of its own, so the latest report is repeated.
    written = write_passages(folder / "passages.parquet", batches, lambda: progress(*latest))
    inputs.check_any(len(written.positions), accept)
    write_provenance(folder / "provenance.parquet", retrieved, written.positions)
    write_leaks(folder / "leaks.parquet", accept.leaks)
    facts = selection_facts(inputs, accept, written, retrieved)
    text = json.dumps(facts, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / "selection.json").write_text(text + "\n", encoding="utf-8")
    return facts
