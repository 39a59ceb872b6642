"""Compare jobs: differences, curves, scores, verdicts and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from services.api.job_artifacts import report_of, situation_of
from services.api.series import series_of
from services.api.views import job_summary
from services.common.catalog import Catalog
from services.common.jobstore import JobStore
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import Conflict, CorruptArtifact, NotFound
from tlm_core.evaluation.bootstrap import paired_difference
from tlm_core.evaluation.summary import PREDICTIONS, REPORT, averaged_seeds, model_rows
from tlm_core.jobs.spec import JobRecord
from tlm_core.json_files import read_json
from tlm_core.tasks.metrics import Targets
from tlm_core.tasks.task import read_labels
from tlm_core.tasks.types import task_type_of
from tlm_core.training.recipe import differences
from tlm_core.wire import Comparison, Difference, JobSeries, ModelScores, Outcome, Verdict

_TASK, _TEST = "validate", "test.parquet"


def compare(catalog: Catalog, jobs: JobStore, artifacts: ArtifactStore, records: Sequence[JobRecord]) -> Comparison:
    """Return the comparison of the jobs `records`, without `curves`."""
    names = _dataset_names(catalog, records)
    outcomes = tuple(_outcome(jobs, artifacts, job) for job in records)
    tested = [_read_tested(jobs, artifacts, job, outcome) for job, outcome in zip(records, outcomes, strict=True)]
    return Comparison(
        jobs=tuple(map(job_summary, records)),
        differences=tuple(Difference(key=key, values=values) for key, values in _differences(records, names).items()),
        outcomes=outcomes,
        verdicts=tuple(_verdict(tested[0], other) for other in tested[1:]),
        curves=(),
    )


def curves_of(jobs: JobStore, records: Sequence[JobRecord], points: int) -> tuple[JobSeries, ...]:
    """Return the curves of each job, with at most `points` points each."""
    return tuple(JobSeries(job=job.id, series=tuple(series_of(jobs, job, points=points))) for job in records)


def _differences(records: Sequence[JobRecord], names: Mapping[str, str]) -> dict[str, tuple[object, ...]]:
    """Return the keys of request and recipe whose values differ between the jobs: key → one value for each job.

    A job at the scale `instant` has the value None for recipe keys. names: see `_dataset_names`.
    """
    rows = differences([_request(job, names) for job in records])
    trained = [job for job in records if job.spec.scale != "instant"]
    recipes = [job.resolved.recipe.model_dump(mode="json", exclude={"name", "scale"}) for job in trained]
    for key, values in differences(recipes).items():
        of_job = dict(zip((job.id for job in trained), values, strict=True))
        rows[key] = tuple(of_job.get(job.id) for job in records)
    return rows


def _request(job: JobRecord, names: Mapping[str, str]) -> dict[str, object]:
    """Return key → value of a job's request, for the keys that `compare` shows. names: see `_dataset_names`."""
    resolved = job.resolved
    request = job.spec.model_dump(
        mode="json",
        include={"kind", "seeds", "workers", "max_workers", "scale", "recipe", "max_runtime_seconds", "priority"},
    )
    request["recipe_name"] = request.pop("recipe")
    version = resolved.corpus_version
    data = {
        "dataset": names[resolved.dataset.digest],
        "dataset_options": _reading(resolved.dataset_options),
        "corpus": version and f"{resolved.corpus_name} (version {version[:8]})",
    }
    options: dict[str, object] = job.spec.options.model_dump(mode="json")
    if name := job.spec.definition.datasets_option:
        options[name] = [
            {"dataset": names[other.ref.digest], "dataset_options": _reading(other.options)}
            for other in resolved.others
        ]
    return request | {"options": options} | data


def _dataset_names(catalog: Catalog, records: Sequence[JobRecord]) -> dict[str, str]:
    """Return digest → name of each dataset: "reviews@v1 (4f1c2a9b)", or "ds_1 (4f1c2a9b)" if it is deleted."""
    names: dict[str, str] = {}
    for job in records:
        for dataset in job.resolved.datasets:
            try:
                record = catalog.dataset(job.tenant, dataset.id)
                name = f"{record.name}@v{record.version}"
            except NotFound:
                name = dataset.id
            names.setdefault(dataset.ref.digest, f"{name} ({dataset.ref.digest[:8]})")
    return names


def _reading(options: Mapping[str, object]) -> dict[str, object]:
    """Return the dataset options that change how a dataset is read: all except `name`."""
    return {key: value for key, value in options.items() if key != "name"}


def _outcome(jobs: JobStore, artifacts: ArtifactStore, job: JobRecord) -> Outcome:
    try:
        report = report_of(jobs, artifacts, job)
    except (Conflict, NotFound, CorruptArtifact) as error:
        return Outcome(job=job.id, reason=error.message)
    parts = {name: report.get(name) for name in ("metric", "mean", "spread", "cost")}
    if not parts["mean"]:
        return Outcome(job=job.id, **parts, reason="The report has no scores.")
    models = tuple(ModelScores.model_validate(asdict(row)) for row in model_rows(report))
    return Outcome(job=job.id, **parts, models=models)


@dataclass(frozen=True)
class _Tested:
    """The predictions of a job on test, with the true labels. A job without predictions has only `job` and `metric`.

    test: the SHA-256 of the file with the test rows, then the labels in index order. targets: array [test rows] of
    label indices or numbers. predictions: one such array for the returned model, or one for each seed.
    """

    job: str
    metric: str | None
    test: tuple[str, ...]
    targets: Targets
    predictions: Sequence[Targets]


def _read_tested(jobs: JobStore, artifacts: ArtifactStore, job: JobRecord, outcome: Outcome) -> _Tested:
    """Return the predictions and true labels of a job on test, both empty if a file is missing. outcome: of the job."""
    import pyarrow.parquet as pq

    situation = situation_of(jobs, job)
    report, ref = situation.done.get(situation.plan.report), situation.done.get(_TASK)
    if outcome.metric is not None and report is not None and ref is not None:
        # The other parts of a comparison are useful without a verdict.
        with suppress(OSError, NotFound, CorruptArtifact):
            predictions = _predictions(artifacts.localize(report), outcome.metric)
            task = artifacts.localize(ref)
            test = artifacts.manifest(ref).file(_TEST).sha256, *read_labels(task)
            targets = pq.read_table(task / _TEST, columns=["label"])["label"].to_numpy()
            return _Tested(job.id, outcome.metric, test, targets, predictions)
    return _Tested(job.id, outcome.metric, (), np.empty(0), ())


def _predictions(report: Path, metric: str) -> list[Targets]:
    if not (report / PREDICTIONS).exists():
        return []
    with np.load(report / PREDICTIONS) as outputs:
        names = ["test.all"]
        if "test.all" not in outputs:
            entries = read_json(report / REPORT)["seeds"]
            names = [f"test.s{seed}" for seed in averaged_seeds(entries)]
        return [task_type_of(metric).predict(outputs[name]) for name in names]


def _verdict(first: _Tested, other: _Tested) -> Verdict:
    """Return whether the model of `other` is better on test than the model of `first`, or why this is unknown."""
    for side in (other, first):
        if not side.predictions:
            return Verdict(job=other.job, reason=f"{side.job} has no predictions on test.")
    if (first.test, first.metric) != (other.test, other.metric):
        return Verdict(job=other.job, reason="The jobs have different test rows, labels or metrics.")
    if len(first.predictions) == len(other.predictions) and all(
        map(np.array_equal, first.predictions, other.predictions)
    ):
        return Verdict(job=other.job, reason="Both models predict the same on test.")
    assert other.metric is not None, "a job with predictions has a metric"
    difference = paired_difference(other.metric, other.targets, other.predictions, first.predictions)
    if difference is None:
        return Verdict(job=other.job, reason="The metric has no value on the test rows.")
    interval = {name: value for name, value in asdict(difference).items() if name != "error"}
    return Verdict(job=other.job, verdict=difference.verdict, **interval)
