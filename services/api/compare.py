"""Jobs side by side: in what they differ, how they went, how good they are and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.api.results import artifact_of, json_of
from services.api.series import Series, series_of
from services.api.views import JobSummary
from services.common.jobreads import JobReads
from tlm_core.artifacts import ArtifactStore
from tlm_core.errors import Conflict, CorruptArtifact, NotFound
from tlm_core.jobs.options import LearningCurve, Prune
from tlm_core.jobs.spec import JobRecord


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Difference(_View):
    """A key of request or recipe in which the jobs are not all alike; values in the order of the jobs."""

    key: str
    values: tuple[Any, ...]


class Outcome(_View):
    """What the report of a job says; null with the reason where there is none."""

    job: str
    metric: str | None = None
    mean: dict[str, Any] | None = Field(None, description="over the seeds, by split and score")
    spread: dict[str, Any] | None = None
    cost: dict[str, Any] | None = Field(None, description="by stage, and `total`: flops, tokens, seconds, gpu_seconds")
    reason: str | None = None


class JobSeries(_View):
    """A job's curves."""

    job: str
    series: tuple[Series, ...]


class Comparison(_View):
    """Everything in the order in which the jobs were asked for."""

    jobs: tuple[JobSummary, ...]
    differences: tuple[Difference, ...]
    outcomes: tuple[Outcome, ...]
    curves: tuple[JobSeries, ...]


def compare(jobs: JobReads, artifacts: ArtifactStore, records: Sequence[JobRecord], *, points: int) -> Comparison:
    """Compare `records`; points: of each curve, at most."""
    return Comparison(
        jobs=tuple(map(JobSummary.of, records)),
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


def _outcome(jobs: JobReads, artifacts: ArtifactStore, job: JobRecord) -> Outcome:
    try:
        report = json_of(artifacts, artifact_of(jobs, job, "evaluate"), "report.json")
    except (Conflict, NotFound, CorruptArtifact) as error:
        return Outcome(job=job.id, reason=error.message)
    parts = {name: report.get(name) for name in ("metric", "mean", "spread", "cost")}
    return Outcome(job=job.id, **parts, reason=None if parts["mean"] else "the report has no scores")
