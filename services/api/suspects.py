"""Suspect labels of a job: the ranking of its report, with the texts of the rows."""

from __future__ import annotations

from services.api.task_rows import task_rows
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import NotFound
from tlm_core.wire import SuspectLabel, SuspectLabels

_CHARS = 1_000


def suspect_labels(
    artifacts: ArtifactStore, report: ManifestRef, task: ManifestRef | None, *, limit: int
) -> SuspectLabels:
    """Return the `limit` most suspect labels. task: the job's task, for the texts.

    Raises NotFound if the report has no ranking.
    """
    ranking = artifacts.read_json(report, "report.json").get("suspects")
    if ranking is None:
        raise NotFound("This job ranks no labels. Classification jobs of the kinds `train` and `prune` do.")
    rows = ranking["rows"][:limit]
    texts = {
        split: task_rows(artifacts, task, split, {row["row"] for row in rows if row["split"] == split}, _CHARS)
        for split in {row["split"] for row in rows}
    }
    data = []
    for row in rows:
        known = texts[row["split"]].get(row["row"])
        data.append(SuspectLabel(**row, text=known and known.text, text_pair=known and known.text_pair))
    return SuspectLabels(neighbors=ranking["neighbors"], total=ranking["total"], data=tuple(data))
