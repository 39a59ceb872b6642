"""Submit, retry and clone jobs: one service for the API and the dashboard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from services.api.parts import Parts
from services.api.submit import changed, resolve_job
from services.common.catalog import dataset_keys
from tlm_core.errors import IllegalTransition
from tlm_core.jobs.spec import JobRecord, JobSpec, Origin, Resolved
from tlm_core.jobs.states import State

RETRYABLE = frozenset({State.FAILED, State.CANCELLED})


def submit_job(parts: Parts, tenant: str, spec: JobSpec, key: str | None) -> tuple[JobRecord, bool]:
    """Create a job. Returns it and whether it is new: a repeated idempotency key returns the earlier job.

    Raises the errors of `resolve_job`, and IdempotencyMismatch if the key belongs to another request.
    """
    return _create(parts, tenant, spec, key, None, lambda: resolve_job(parts, tenant, spec))


def retry_job(parts: Parts, job: JobRecord, key: str | None) -> tuple[JobRecord, bool]:
    """Create a job with the same resolved inputs, which reuses finished stages. Raises IllegalTransition."""
    if job.state not in RETRYABLE:
        raise IllegalTransition(
            f"Job {job.id} is {job.state}. Only failed and cancelled jobs can be retried; clone it instead.",
            state=job.state,
        )
    origin = Origin(job=job.id, how="retry")
    return _create(parts, job.tenant, job.spec, key, origin, lambda: (job.spec, job.resolved))


def clone_job(parts: Parts, job: JobRecord, changes: Mapping[str, Any], key: str | None) -> tuple[JobRecord, bool]:
    """Create a job with the spec of another one and `changes`. Raises InvalidRequest and the errors of `submit_job`."""
    spec = changed(job, changes)
    origin = Origin(job=job.id, how="clone")
    return _create(parts, job.tenant, spec, key, origin, lambda: resolve_job(parts, job.tenant, spec))


def _create(
    parts: Parts,
    tenant: str,
    spec: JobSpec,
    key: str | None,
    origin: Origin | None,
    resolve: Callable[[], tuple[JobSpec, Resolved]],
) -> tuple[JobRecord, bool]:
    """Look up the key first and resolve only a new job: the data of an earlier one may be deleted."""
    if key and (job := parts.jobs.submitted_with(tenant, spec, key, origin)):
        return job, False
    spec, resolved = resolve()
    needs = dataset_keys(tenant, (dataset.id for dataset in resolved.datasets))
    return parts.jobs.submit(tenant, spec, resolved, idempotency_key=key, origin=origin, needs=needs)
