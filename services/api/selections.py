"""Read a job's selection page by page, and list the texts with the most leaks.

Each passage of a page has the training rows that retrieved it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.api.task_rows import TaskRow, task_rows
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.parquet import open_parquet
from tlm_core.wire import Provenance, SelectedPassage, Selection

_MAX_QUERIES = 20
_MAX_CHARS = 300


def selection_page(
    artifacts: ArtifactStore,
    ref: ManifestRef,
    *,
    after: int,
    limit: int,
    words: Sequence[str] = (),
    train_row: int | None = None,
    task: ManifestRef | None = None,
) -> Selection:
    """Return at most `limit` passages of a selection. Skip the first `after` passages that match.

    words: a matching passage contains all these words, ignoring case, also inside longer words. train_row: this row
    retrieved each matching passage. ref, task: the artifacts of the stages `select` and `validate`.
    """
    folder = artifacts.localize(ref)
    facts = json.loads((folder / "selection.json").read_text(encoding="utf-8"))
    rows, total = _matching(folder, words, train_row, after, limit)
    provenance = _provenance(folder, [str(row["id"]) for row in rows])
    shown = [entry for entries in provenance.values() for entry in entries[:_MAX_QUERIES]]
    texts = task_rows(artifacts, task, (("train", entry.train_row) for entry in shown), _MAX_CHARS)
    data = []
    for row in rows:
        entries, queries = provenance[str(row["id"])], []
        for entry in entries[:_MAX_QUERIES]:
            text = texts.get(("train", entry.train_row))
            queries.append(entry.model_copy(update=vars(text)) if text else entry)
        data.append(SelectedPassage.model_validate({**row, "provenance": queries, "provenance_total": len(entries)}))
    return Selection(facts=facts, data=tuple(data), total=total, has_more=after + len(rows) < total)


@dataclass(frozen=True)
class LeakedText:
    """A row of validation or test whose text occurs in passages. passages: number of passages removed for this reason.

    row: the number of the row in the dataset. text: the texts of the row, or None if the task is not available.
    """

    split: str
    row: int
    passages: int
    text: TaskRow | None


def leaked_texts(artifacts: ArtifactStore, ref: ManifestRef, task: ManifestRef | None, limit: int) -> list[LeakedText]:
    """Return the `limit` rows of validation and test for which the selection removed the most passages."""
    import pyarrow.parquet as pq

    table = pq.read_table(artifacts.localize(ref) / "leaks.parquet", columns=["passage_id", "split", "row"])
    # A passage that contains both texts of a pair has two entries.
    distinct = dict.fromkeys(tuple(entry.values()) for entry in table.to_pylist())
    counts = Counter((split, row) for _, split, row in distinct).most_common(limit)
    texts = task_rows(artifacts, task, (row for row, _ in counts), _MAX_CHARS)
    return [LeakedText(*row, passages, texts.get(row)) for row, passages in counts]


def _matching(
    folder: Path, words: Sequence[str], train_row: int | None, after: int, limit: int
) -> tuple[list[dict[str, object]], int]:
    """Return (page of matching rows in passages.parquet, number of all matching rows). folder: the selection."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    ids = None
    if train_row is not None:
        file, retrieved = folder / "provenance.parquet", [("train_row", "==", train_row)]
        ids = pq.read_table(file, columns=["passage_id"], filters=retrieved)[0]
    rows: list[dict[str, object]] = []
    total = 0
    with open_parquet(folder / "passages.parquet") as passages:
        for batch in passages.iter_batches(batch_size=8_192):
            for word in words:
                batch = batch.filter(pc.match_substring(batch["text"], word, ignore_case=True))
            if ids is not None:
                batch = batch.filter(pc.is_in(batch["id"], ids))
            begin = max(after - total, 0)
            if begin < batch.num_rows and len(rows) < limit:
                rows.extend(batch.slice(begin, limit - len(rows)).to_pylist())
            total += batch.num_rows
    return rows, total


def _provenance(folder: Path, passages: list[str]) -> dict[str, list[Provenance]]:
    """Return passage id → the train rows that retrieved the passage, best rank first."""
    import pyarrow.parquet as pq

    queries: dict[str, list[Provenance]] = {name: [] for name in passages}
    if passages:
        table = pq.read_table(folder / "provenance.parquet", filters=[("passage_id", "in", passages)])
        for row in table.to_pylist():
            queries[row.pop("passage_id")].append(Provenance(**row))
    return queries
