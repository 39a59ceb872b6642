"""Jobs side by side: in what they differ, how they went, how good they are and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.api.job_artifacts import artifact_of
from services.api.series import series_of
from services.api.views import job_summary
from services.common.jobstore import JobStore
from tlm_core.artifacts import ArtifactStore
from tlm_core.errors import Conflict, CorruptArtifact, NotFound
from tlm_core.jobs.options import LearningCurve, Prune
from tlm_core.jobs.spec import JobRecord
from tlm_core.wire import Comparison, Difference, JobSeries, Outcome


def compare(jobs: JobStore, artifacts: ArtifactStore, records: Sequence[JobRecord], *, points: int) -> Comparison:
    """Compare `records`; points: of each curve, at most."""
    return Comparison(
        jobs=tuple(map(job_summary, records)),
        differences=tuple(differences([_settled(job) for job in records])),
        outcomes=tuple(_outcome(jobs, artifacts, job) for job in records),
        curves=tuple(JobSeries(job=job.id, series=tuple(series_of(jobs, job, points=points))) for job in records),
    )


def differences(settled: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """The dotted keys whose values are not equal everywhere; a key that one lacks is null there."""
    flat = [dict(_leaves(one)) for one in settled]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    found = (Difference(key=key, values=tuple(one.get(key) for one in flat)) for key in keys)
    return [one for one in found if any(value != one.values[0] for value in one.values)]


def _settled(job: JobRecord) -> dict[str, Any]:
    resolved = job.resolved
    asked = job.spec.model_dump(
        mode="json", include={"kind", "seeds", "workers", "scale", "recipe", "max_runtime_seconds", "priority"}
    )
    asked["recipe_name"] = asked.pop("recipe")
    recipe = resolved.recipe.model_dump(mode="json", exclude={"name", "scale"})
    data = {
        "dataset": resolved.dataset.digest,
        "dataset_options": resolved.dataset_options,
        "corpus": resolved.corpus_name,
        "corpus_version": resolved.corpus_version,
    }
    return asked | _options(job) | data | recipe


def _options(job: JobRecord) -> dict[str, Any]:
    """What the job's kind asks for beyond a recipe, with its defaults; other data sets by their content and options."""
    spec = job.spec
    match spec.kind:
        case "learning_curve":
            options: dict[str, Any] = (spec.learning_curve or LearningCurve()).model_dump(mode="json")
        case "prune":
            options = (spec.prune or Prune()).model_dump(mode="json")
        case "share_tickets":
            assert spec.share_tickets is not None  # a request without them is refused
            options = spec.share_tickets.model_dump(mode="json")
            others = job.resolved.others
            options["others"] = [{"dataset": one.ref.digest, "dataset_options": one.options} for one in others]
        case _:
            return {}
    return {spec.kind: options}


def _leaves(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, inner in value.items():
        found.extend(_leaves(inner, f"{prefix}{key}.") if isinstance(inner, dict) else [(prefix + key, inner)])
    return found


def _outcome(jobs: JobStore, artifacts: ArtifactStore, job: JobRecord) -> Outcome:
    try:
        report = artifacts.read_json(artifact_of(jobs, job, "evaluate"), "report.json")
    except (Conflict, NotFound, CorruptArtifact) as error:
        return Outcome(job=job.id, reason=error.message)
    parts = {name: report.get(name) for name in ("metric", "mean", "spread", "cost")}
    return Outcome(job=job.id, **parts, reason=None if parts["mean"] else "the report has no scores")
