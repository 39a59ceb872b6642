"""Deleting data sets and jobs with what hangs on them. The record goes first, in one fenced step that also notes what
is to be removed after it. Files, and the jobs that a data set takes with it, follow, now or, where that broke off, by
`finish_removals`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from services.common.catalog_records import DatasetRecord
from services.common.jobstore import JobStore, Removal
from services.common.situation import Situation
from tlm_core.artifacts import ArtifactStore
from tlm_core.errors import NotFound, StoreUnavailable, TLMError
from tlm_core.jobs.spec import JobRecord

log = logging.getLogger(__name__)


def delete_dataset(jobs: JobStore, artifacts: ArtifactStore, record: DatasetRecord, *, with_jobs: bool = False) -> None:
    """Delete a data set and its files. Raises Conflict while a job that is not over needs it.

    Jobs that are over keep what they have made, unless they go with it.
    """
    folders = [f"{record.tenant}/datasets/{record.id}"]
    removal = Removal(record.tenant, record.id, folders=folders, with_jobs=with_jobs)
    jobs.drop_dataset(record.tenant, record.id, record.name, removal)
    _finish(jobs, artifacts, removal)


def delete_job(jobs: JobStore, artifacts: ArtifactStore, job: JobRecord) -> None:
    """Delete a job that is over, its log, and the artifacts and checkpoints that no other job shares.

    Raises IllegalTransition while it is not over. A job submitted at this very moment that counts on one of the
    artifacts finds its files gone and makes it again.
    """
    made, data = sorted(artifacts_made(jobs, job)), sorted({one.ref.digest for one in job.resolved.datasets})
    removal = Removal(job.tenant, job.id, artifacts=made, data=data)
    jobs.delete(job, removal)
    _finish(jobs, artifacts, removal)


def finish_removals(jobs: JobStore, artifacts: ArtifactStore) -> None:
    """Remove what deletions that broke off have left. Raises StoreUnavailable."""
    for removal in jobs.removals():
        _finish(jobs, artifacts, removal)


def _finish(jobs: JobStore, artifacts: ArtifactStore, removal: Removal) -> None:
    """Remove what is noted. What cannot be removed now stays noted: the record is gone, so nobody could ask again."""
    try:
        _remove(jobs, artifacts, removal)
        jobs.removed(removal)
    except TLMError as error:
        log.warning("what %s has left is removed later: %s", removal.id, error)


def _remove(jobs: JobStore, artifacts: ArtifactStore, removal: Removal) -> None:
    tenant, own = removal.tenant, set(removal.artifacts)
    for digest in removal.data:
        for other in jobs.jobs_on_data(tenant, digest):
            if shared := own & artifacts_made(jobs, other):
                jobs.inherit_artifacts(other, shared)
                own -= shared
    for artifact in sorted(own):
        jobs.invalidate_artifact(tenant, artifact)
        for checkpoint in jobs.checkpoints(tenant, artifact):
            jobs.drop_checkpoint(tenant, artifact, checkpoint)
    owned = [f"{tenant}/{kind}/{artifact}" for artifact in sorted(own) for kind in ("artifacts", "checkpoints")]
    for folder in (*removal.folders, *owned):
        artifacts.delete(folder)
    more = removal.with_jobs
    while more:
        page, more = jobs.list_jobs(tenant, datasets=[removal.id], limit=100)
        for job in page:
            # Another gateway may be at the same removal.
            with suppress(NotFound):
                delete_job(jobs, artifacts, job)
        more = more and bool(page)


@contextmanager
def taken_back(artifacts: ArtifactStore, folder: str) -> Iterator[None]:
    """Within it `folder` is written and then recorded; it is deleted again when that fails.

    It stays where the store did not answer: the record may have been made all the same, and then names these files.
    """
    try:
        yield
    except StoreUnavailable:
        raise
    except BaseException:
        artifacts.delete(folder)
        raise


def artifacts_made(jobs: JobStore, job: JobRecord) -> set[str]:
    """Ids of the artifacts that a job has, or is about to make: of each stage whose inputs are there.

    What it made under an earlier release may have other ids than its plan has now.
    """
    made = jobs.artifacts_of(job.tenant, job.id)
    if job.result is not None and "artifacts" in job.result:
        return made | {entry["artifact"] for entry in job.result["artifacts"].values()}
    return made.union(Situation.read(jobs, job).artifact_ids())
