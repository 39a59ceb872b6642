"""Verdicts between jobs on the same dataset, by a paired bootstrap over the test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from services.api.job_artifacts import artifacts_by_node
from services.common.jobstore import JobStore
from tlm_core.artifacts import ArtifactStore
from tlm_core.errors import CorruptArtifact, NotFound
from tlm_core.evaluation.bootstrap import paired_difference
from tlm_core.evaluation.report import PREDICTIONS
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.tasks.metrics import Targets
from tlm_core.tasks.types import task_type_of
from tlm_core.wire import Outcome, Verdict

_TASK = "validate"


def verdicts(
    jobs: JobStore, artifacts: ArtifactStore, records: Sequence[JobRecord], outcomes: Sequence[Outcome]
) -> tuple[Verdict, ...]:
    """One verdict for each job but the first, against the first. outcomes: of the jobs."""
    results = [_read(jobs, artifacts, job, outcome) for job, outcome in zip(records, outcomes, strict=True)]
    return tuple(_verdict(results[0], other) for other in results[1:])


@dataclass(frozen=True)
class _Tested:
    """A job with its predictions on test. task: digest of its task; None for a job without a task.

    predictions: of the returned model [rows], or of each seed's; none if the report has no predictions.
    """

    job: str
    metric: str | None
    task: str | None
    targets: Targets
    predictions: Sequence[Targets]


def _read(jobs: JobStore, artifacts: ArtifactStore, job: JobRecord, outcome: Outcome) -> _Tested:
    """Read what a verdict about a job needs. outcome: of the job."""
    nothing = _Tested(job.id, outcome.metric, None, np.empty(0), ())
    plan = plan_of(job)
    done = artifacts_by_node(jobs, job, plan)
    if outcome.metric is None or plan.report not in done or _TASK not in done:
        return nothing
    try:
        predictions = _predictions(artifacts.localize(done[plan.report]), outcome.metric)
        targets = _targets(artifacts.localize(done[_TASK])) if predictions else np.empty(0)
    except (OSError, NotFound, CorruptArtifact):  # the other parts of a comparison are useful without a verdict
        return nothing
    return _Tested(job.id, outcome.metric, done[_TASK].digest, targets, predictions)


def _predictions(report: Path, metric: str) -> list[Targets]:
    if not (report / PREDICTIONS).exists():
        return []
    with np.load(report / PREDICTIONS) as outputs:
        names = [name for name in outputs if name == "test.all"] or [n for n in outputs if n.startswith("test.s")]
        return [task_type_of(metric).predict(outputs[name]) for name in names]


def _targets(task: Path) -> Targets:
    import pyarrow.parquet as pq

    return pq.read_table(task / "test.parquet", columns=["label"])["label"].to_numpy()


def _verdict(first: _Tested, other: _Tested) -> Verdict:
    """Compare the model of a job with that of the first job."""
    reason = None
    for side in (first, other):
        if not side.predictions:
            reason = f"{side.job} has no predictions on test."
    if reason is None and (first.task, first.metric) != (other.task, other.metric):
        reason = "The jobs have different datasets."
    if reason is not None:
        return Verdict(job=other.job, reason=reason)
    assert other.metric is not None
    difference = paired_difference(other.metric, other.targets, other.predictions, first.predictions)
    if difference is None:
        return Verdict(job=other.job, reason="Test has no score.")
    interval = {name: value for name, value in asdict(difference).items() if name != "error"}
    return Verdict(job=other.job, verdict=difference.verdict, **interval)
