"""Deleting corpora and versions of them: what is found by the record goes first, so asking again finishes the work."""

from __future__ import annotations

from services.api.parts import Parts
from services.common.catalog_records import CorpusRecord
from tlm_core.errors import AlreadyRunning, Conflict
from tlm_core.jobs.states import TERMINAL, State


def delete_corpus(parts: Parts, tenant: str, corpus: CorpusRecord, version: str | None = None) -> None:
    """Delete one version of a corpus, or all of it. Jobs that are over keep what they have made.

    Raises NotFound for a version that is not there, Conflict while a job that is not over needs one of them,
    AlreadyRunning while an upload is on its way, IndexUnavailable when the retriever is away. A job submitted at this
    very moment fails when it selects, and says that the corpus is gone.
    """
    versions = corpus.versions if version is None else (corpus.version(version),)
    if load := parts.catalog.open_load(tenant, corpus.name):
        raise AlreadyRunning(
            f"corpus '{corpus.name}' is being loaded ({load.id}); wait until that is over, or cancel it", load=load.id
        )
    _refuse_while_needed(parts, tenant, corpus.name, {entry.version for entry in versions})
    for entry in versions:
        parts.retriever.delete_corpus(tenant, corpus.name, entry.version)
        parts.artifacts.delete(entry.passages.folder)
    parts.catalog.drop_corpus(tenant, corpus.name, version or "")


def _refuse_while_needed(parts: Parts, tenant: str, corpus: str, versions: set[str]) -> None:
    for state in set(State) - TERMINAL:
        after, more = None, True
        while more:
            jobs, more = parts.jobs.list_jobs(tenant, state=state, after=after, limit=100)
            for job in jobs:
                if job.resolved.corpus_name == corpus and job.resolved.corpus_version in versions:
                    raise Conflict(f"{job.id} is {job.state} and needs corpus '{corpus}'; cancel it first", job=job.id)
            after = jobs[-1].id if jobs else None
