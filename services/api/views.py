"""Answers of the API, built from records."""

from __future__ import annotations

from collections.abc import Sequence

from services.api.standing import NOTHING_NEW, Standing
from services.common.catalog_records import CorpusLoad, CorpusRecord, DatasetRecord
from services.common.situation import Situation
from tlm_core import wire
from tlm_core.errors import without_details
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State

_SPEC_FIELDS = ("name", "kind", "dataset", "corpus", "scale", "recipe", "seeds", "metadata", "priority")
_RECORDED = wire.JobSummary.model_fields.keys() - {"metric", "score"}


def dataset_view(record: DatasetRecord) -> wire.Dataset:
    fields = record.model_dump(include={"id", "name", "version", "options", "created_at"})
    return wire.Dataset(**fields, **record.summary.model_dump(), digest=record.raw.digest, error=record.error)


def load_view(load: CorpusLoad) -> wire.CorpusLoad:
    return wire.CorpusLoad.model_validate(load, from_attributes=True)


def corpus_view(corpus: CorpusRecord, loads: Sequence[CorpusLoad]) -> wire.Corpus:
    ready = corpus.ready()
    return wire.Corpus(
        name=corpus.name,
        version=ready.version if ready else None,
        versions=tuple(wire.CorpusVersion.model_validate(version, from_attributes=True) for version in corpus.versions),
        loads=tuple(map(load_view, loads)),
    )


def job_summary(job: JobRecord, standing: Standing = NOTHING_NEW) -> wire.JobSummary:
    summary = _summary(job, standing)
    return wire.JobSummary.model_validate({**summary, "error": job.error and without_details(job.error)})


def job_view(situation: Situation, standing: Standing) -> wire.Job:
    job = situation.job
    fields = {**_summary(job, standing), **_resolved(situation), "last_event": job.last_event}
    return wire.Job.model_validate(fields)


def dry_run_view(situation: Situation, estimate: wire.Estimate) -> wire.DryRun:
    return wire.DryRun.model_validate({**_resolved(situation), "estimate": estimate})


def _summary(job: JobRecord, standing: Standing) -> dict[str, object]:
    """Return field → value of a JobSummary, from the record and the standing of a job."""
    fields = {name: getattr(job.spec, name) for name in _SPEC_FIELDS} | vars(standing)
    fields |= {name: getattr(job, name) for name in _RECORDED - fields.keys()}
    if job.spec.dataset == job.resolved.dataset_id:  # for a clone, or a job that starts from another job
        fields["dataset"] = job.resolved.dataset_options.get("name") or job.spec.dataset
    if job.progress and job.state is State.SUCCEEDED:  # the last report of a worker precedes the end
        over = {"share": 1.0, "eta_seconds": 0.0, "stage_eta_seconds": 0.0, "nodes_done": job.progress.nodes_total}
        fields["progress"] = job.progress.model_copy(update=over)
    summary = job.result.summary if job.result else None
    return fields | {"metric": summary and summary.metric, "score": summary and summary.score}


def _resolved(situation: Situation) -> dict[str, object]:
    """Return field → value of the fields that Job and DryRun share: request, resolved inputs and stages."""
    job, done = situation.job, situation.done
    stages = tuple(
        wire.StageState(
            name=node.name,
            stage=node.stage.name,
            place=node.place,
            needs=tuple(sorted(set(node.inputs.values()))),
            done=node.name in done,
            digest=done[node.name].digest if node.name in done else None,
        )
        for node in situation.plan.nodes
    )
    return {
        "spec": job.spec,
        "dataset_id": job.resolved.dataset_id,
        "dataset_digest": job.resolved.dataset.digest,
        "corpus_version": job.resolved.corpus_version,
        "resolved_recipe": job.resolved.recipe,
        "stages": stages,
    }
