"""Suspect labels, which are probably wrong: the ranking in the report of a job, with the texts of the rows."""

from __future__ import annotations

from services.api.job_artifacts import report_of, situation_of
from services.api.task_rows import task_rows
from services.common.jobstore import JobStore
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import NotFound
from tlm_core.jobs.spec import JobRecord
from tlm_core.wire import SuspectLabel, SuspectLabels

_CHARS = 1_000


def suspect_labels(jobs: JobStore, artifacts: ArtifactStore, job: JobRecord, *, limit: int) -> SuspectLabels:
    """Return the `limit` most suspect labels with their rows' texts. Raises NotReady, or NotFound without a ranking."""
    ranking = report_of(jobs, artifacts, job).get("suspects")
    if ranking is None:
        raise NotFound(
            f"The report of job {job.id} has no ranking of suspect labels. Use a classification job of kind train or "
            "prune."
        )
    rows, task = ranking["rows"][:limit], situation_of(jobs, job).done.get("validate")
    texts = task_rows(artifacts, task, ((row["split"], row["row"]) for row in rows), _CHARS)
    data = []
    for row in rows:
        known = texts.get((row["split"], row["row"]))
        data.append(SuspectLabel(**row, text=known and known.text, text_pair=known and known.text_pair))
    return SuspectLabels(neighbors=ranking["neighbors"], total=ranking["total"], data=tuple(data))
