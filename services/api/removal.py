"""Delete datasets, corpora and jobs.

The deletion of a dataset or job has two steps. First, one atomic step in Redis deletes the record and stores a
`Removal`, which lists the remaining data. Second, the gateway deletes this data. After an interruption,
`finish_removals` completes the second step. The record of a corpus is deleted last, so that a client can repeat an
interrupted deletion.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

from services.common.catalog_records import DatasetRecord
from services.common.history import folder_of
from services.common.job_reads import has_alias
from services.common.jobstore import JobStore, Removal
from services.common.logs import ids_in, log_context
from services.common.situation import Situation
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import AlreadyRunning, Conflict, NotFound, TLMError
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import TERMINAL, State

if TYPE_CHECKING:
    from services.api.parts import Parts

log = logging.getLogger(__name__)


def delete_dataset(parts: Parts, record: DatasetRecord, *, with_jobs: bool = False) -> None:
    """Delete a dataset and its files. Raises Conflict while an unfinished job needs the dataset.

    Finished jobs retain their results. with_jobs: also delete the jobs on the dataset. If an alias points to one of
    these jobs, raise Conflict and delete nothing.
    """
    jobs, artifacts = parts.jobs, parts.artifacts
    for alias, job in (parts.models.aliases(record.tenant) if with_jobs else {}).items():
        with suppress(NotFound):
            if record.id in {dataset.id for dataset in jobs.get(record.tenant, job).resolved.datasets}:
                raise has_alias(job, alias)
    folders = [f"{record.tenant}/datasets/{record.id}"]
    removal = Removal(record.tenant, record.id, folders=folders, with_jobs=with_jobs)
    jobs.drop_dataset(record.tenant, record.id, record.name, removal)
    _finish(jobs, artifacts, removal)


def delete_job(jobs: JobStore, artifacts: ArtifactStore, job: JobRecord) -> None:
    """Delete a finished job, its log, and the artifacts and checkpoints that no other job uses.

    Raises IllegalTransition while the job is unfinished, and Conflict while an alias points to it. A job that is
    submitted at the same time can still reuse one of the artifacts. That job then computes the artifact again.
    """
    produced = sorted(artifacts_of(jobs, job))
    data = sorted({dataset.ref.digest for dataset in job.resolved.datasets})
    removal = Removal(job.tenant, job.id, folders=[folder_of(job.tenant, job.id)], artifacts=produced, data=data)
    jobs.delete(job, removal)
    _finish(jobs, artifacts, removal)


def delete_corpus(parts: Parts, tenant: str, name: str, version: str | None = None) -> None:
    """Delete one version of a corpus, or the whole corpus. Finished jobs retain their results.

    Raises NotFound for an unknown corpus or version, Conflict while an unfinished job uses the data, and AlreadyRunning
    during a load. Raises IndexUnavailable if the retriever does not answer. A job that is submitted at the same time
    fails in its select stage.
    """
    corpus = parts.catalog.corpus(tenant, name)
    versions = corpus.versions if version is None else (corpus.version(version),)
    if load := parts.catalog.open_load(tenant, name):
        message = f"Load {load.id} of corpus '{name}' has not ended. Wait until it ends, or cancel it."
        raise AlreadyRunning(message, load=load.id)
    _check_unused(parts.jobs, tenant, name, {entry.version for entry in versions})
    for entry in versions:
        parts.retriever.delete_corpus(tenant, name, entry.version)
        parts.artifacts.delete(entry.passages.folder)
    parts.catalog.drop_corpus(tenant, name, version or "")


def finish_removals(parts: Parts) -> None:
    """Complete interrupted deletions. Raises StoreUnavailable."""
    for member, body in parts.jobs.removals().items():
        with parts.removals.item(f"removal {member}", **ids_in(member)):
            _finish(parts.jobs, parts.artifacts, Removal(**json.loads(body)))


def artifacts_of(jobs: JobStore, job: JobRecord) -> set[str]:
    """Return the ids of the artifacts that a job has produced or may still produce, with those of earlier releases."""
    produced = jobs.artifacts_of(job.tenant, job.id)
    if job.unreadable or (job.result is not None and produced):  # Without `produced`, the list of ids is lost.
        return produced
    return produced.union(Situation.read(jobs, job).artifact_ids())


def _check_unused(jobs: JobStore, tenant: str, corpus: str, versions: set[str]) -> None:
    for state in set(State) - TERMINAL:
        for job in jobs.each_job(tenant, state=state):
            uses = job.resolved.corpus_name == corpus and job.resolved.corpus_version in versions
            if uses or job.unreadable:
                use = "uses" if uses else "has an unreadable record, so it may use"
                raise Conflict(
                    f"Job {job.id} is {job.state} and {use} corpus '{corpus}'. Wait until the job ends, or cancel it.",
                    job=job.id,
                )


def _finish(jobs: JobStore, artifacts: ArtifactStore, removal: Removal) -> None:
    """Delete the data that `removal` lists. After an error, `finish_removals` tries again later."""
    with log_context(**ids_in(removal.id)):
        try:
            for folder in removal.folders:
                artifacts.delete(folder)
            _remove_unshared(jobs, artifacts, removal)
            for job in jobs.each_job(removal.tenant, datasets=[removal.id]) if removal.with_jobs else ():
                # NotFound: another gateway runs the same removal. Conflict: the job's model has received an alias.
                with suppress(NotFound, Conflict):
                    delete_job(jobs, artifacts, job)
            jobs.removed(removal)
        except TLMError as error:
            log.warning("Files of %s will be deleted later: %s", removal.id, error)


def _remove_unshared(jobs: JobStore, artifacts: ArtifactStore, removal: Removal) -> None:
    """Unpublish the artifacts and checkpoints that no other job shares, and delete their files.

    No attempt number fences these writes, and an equal job may start at the same time. So this function first reads
    the artifacts and checkpoints, then looks for other jobs, and deletes only what it has read. Raises Conflict if a
    job on the same data was submitted before the artifacts were unpublished, because that job may use them.
    """
    tenant, ids = removal.tenant, sorted(removal.artifacts)
    refs = dict(zip(ids, jobs.artifacts(tenant, ids), strict=True))
    checkpoints = {artifact: jobs.checkpoints(tenant, artifact) for artifact in ids}
    parents = {artifact: (f"{tenant}/artifacts/{artifact}", f"{tenant}/checkpoints/{artifact}") for artifact in ids}
    folders = {artifact: [*map(artifacts.subfolders, parents[artifact])] for artifact in ids}
    seen = jobs.ids_on_data(tenant, removal.data)
    unshared = _unshared(jobs, removal)
    for artifact in unshared:
        if ref := refs[artifact]:
            jobs.invalidate_artifact(tenant, artifact, ref)
        for checkpoint in checkpoints[artifact]:
            jobs.drop_checkpoint(tenant, artifact, checkpoint)
    if unshared and (new := jobs.ids_on_data(tenant, removal.data) - seen):
        raise Conflict(f"Job {min(new)} on the same data was submitted during the deletion and may use the files.")
    for artifact in unshared:
        for folder in chain(*folders[artifact]):
            artifacts.delete(folder)
        for parent in parents[artifact]:
            artifacts.delete_empty(parent)


def _unshared(jobs: JobStore, removal: Removal) -> list[str]:
    """Return the ids of the artifacts in `removal` that no other job uses. A job that uses an artifact inherits it."""
    unshared = set(removal.artifacts)
    for digest in removal.data:
        for other in jobs.jobs_on_data(removal.tenant, digest):
            if not unshared:
                break
            if shared := unshared & artifacts_of(jobs, other):
                jobs.inherit_artifacts(other, shared)
                unshared -= shared
    return sorted(unshared)
