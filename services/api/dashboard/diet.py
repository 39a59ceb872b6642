"""The selection explorer: which passages are in a model's diet, and which train texts asked for them."""

from __future__ import annotations

from typing import Any

from services.api.results import selection_page
from services.api.views import PassageView, SelectionView
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import TLMError

ASKERS = 5


def explore(artifacts: ArtifactStore, ref: ManifestRef, *, query: str, after: int, limit: int) -> SelectionView:
    """`limit` passages from position `after` on, best rank first; with a query only those whose text or source holds
    it, in any case."""
    if not query:
        return selection_page(artifacts, ref, after=after, limit=limit)
    return _search(artifacts, ref, query, after, limit)


def askers(artifacts: ArtifactStore, task: ManifestRef | None, passages: tuple[PassageView, ...]) -> dict[int, Any]:
    """Train row → its text and label, for the first rows that asked for each passage. Empty where the task is gone."""
    import pyarrow.parquet as pq

    rows = sorted({one.train_row for passage in passages for one in passage.asked_by[:ASKERS]})
    if task is None or not rows:
        return {}
    try:
        path = artifacts.localize(task) / "train.parquet"
        labels = _labels(artifacts, task)
    except TLMError:
        return {}
    if not path.exists():
        return {}
    table = pq.read_table(path, columns=["row", "text", "label"], filters=[("row", "in", rows)])
    return {row["row"]: {"text": row["text"], "label": labels[row["label"]]} for row in table.to_pylist()}


def _labels(artifacts: ArtifactStore, task: ManifestRef) -> list[str]:
    import json

    with artifacts.open(task, "task.json") as handle:
        labels: list[str] = json.load(handle)["labels"]
    return labels


def _search(artifacts: ArtifactStore, ref: ManifestRef, query: str, after: int, limit: int) -> SelectionView:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from services.api.views import Provenance

    folder = artifacts.localize(ref)
    rows: list[dict[str, Any]] = []
    passed = 0
    with pq.ParquetFile(folder / "passages.parquet") as file:
        for batch in file.iter_batches(batch_size=8_192):
            hits = pc.or_(
                pc.match_substring(batch["text"], query, ignore_case=True),
                pc.match_substring(batch["source"], query, ignore_case=True),
            )
            found = pa.Table.from_batches([batch]).filter(hits)
            start = min(found.num_rows, max(0, after - passed))
            passed += found.num_rows
            rows.extend(found.slice(start, limit + 1 - len(rows)).to_pylist())
            if len(rows) > limit:
                break
    shown = rows[:limit]
    asked: dict[str, list[Provenance]] = {row["id"]: [] for row in shown}
    if shown:
        table = pq.read_table(folder / "provenance.parquet", filters=[("passage_id", "in", list(asked))])
        for row in table.to_pylist():
            entry = Provenance(train_row=row["train_row"], rank=row["rank"], score=row["score"])
            asked[row["passage_id"]].append(entry)
    data = tuple(PassageView(**row, asked_by=tuple(asked[row["id"]])) for row in shown)
    return SelectionView(facts=selection_page(artifacts, ref, after=0, limit=1).facts, data=data,
                         has_more=len(rows) > limit)  # fmt: skip
