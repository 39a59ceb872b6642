"""Suspect labels of a job: the ranking in its report, with the texts of the rows."""

from __future__ import annotations

from services.api.job_artifacts import artifact_of, artifacts_by_node
from services.api.task_rows import task_rows
from services.common.jobstore import JobStore
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import NotFound
from tlm_core.jobs.spec import JobRecord
from tlm_core.wire import SuspectLabel, SuspectLabels

_CHARS = 1_000


def suspect_labels(jobs: JobStore, artifacts: ArtifactStore, job: JobRecord, *, limit: int) -> SuspectLabels:
    """Return the `limit` most suspect labels. Raises NotReady without a report, NotFound if it has no ranking."""
    ranking = artifacts.read_json(artifact_of(jobs, job, "evaluate"), "report.json").get("suspects")
    if ranking is None:
        raise NotFound(
            f"The report of job {job.id} has no ranking of suspect labels. Use a classification job of kind train or "
            "prune."
        )
    rows, task = ranking["rows"][:limit], artifacts_by_node(jobs, job).get("validate")
    texts = {
        split: task_rows(artifacts, task, split, {row["row"] for row in rows if row["split"] == split}, _CHARS)
        for split in {row["split"] for row in rows}
    }
    data = []
    for row in rows:
        known = texts[row["split"]].get(row["row"])
        data.append(SuspectLabel(**row, text=known and known.text, text_pair=known and known.text_pair))
    return SuspectLabels(neighbors=ranking["neighbors"], total=ranking["total"], data=tuple(data))
