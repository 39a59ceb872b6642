"""The models of succeeded jobs, and their aliases.

An alias is a name such as `reviews@production`. It points to one succeeded job, and can later point to another.
"""

from __future__ import annotations

from itertools import islice
from typing import cast

import redis
from redis.client import Pipeline

from services.api.job_artifacts import artifact_of
from services.common.jobstore import JobStore
from services.common.redis_client import key
from tlm_core.errors import NotFound
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.wire import FinishedModel, Page
from tlm_core.wording import suggestion


class Models:
    """The models and aliases of each tenant. Methods raise StoreUnavailable, StoreFull or UnreadableRecord."""

    def __init__(self, client: redis.Redis, jobs: JobStore) -> None:
        self._redis, self._jobs = client, jobs

    def list(self, tenant: str, after: str | None, limit: int) -> Page[FinishedModel]:
        """Return a page of models of succeeded jobs, newest first. after: id of a job; return models of older jobs."""
        succeeded = self._jobs.each_job(tenant, state=State.SUCCEEDED, after=after, page=limit + 1)
        with_model = (job for job in succeeded if not job.unreadable and job.spec.definition.has_model)
        jobs, aliases = tuple(islice(with_model, limit + 1)), self.aliases(tenant)
        return Page(data=tuple(_view(job, aliases) for job in jobs[:limit]), has_more=len(jobs) > limit)

    def get(self, tenant: str, job_id: str) -> FinishedModel:
        """Return the model of a job. Raises NotReady if it does not exist yet, and NotFound if it will never exist."""
        job = self._jobs.get(tenant, job_id)
        artifact_of(self._jobs, job, "export")
        return _view(job, self.aliases(tenant))

    def job_id(self, tenant: str, model: str) -> str:
        """Return the job id of `model`, which is an alias or a job id. Raises NotFound for an unknown alias."""
        if "@" not in model:
            return model
        if job := cast(str | None, self._redis.hget(key(tenant, "aliases"), model)):
            return job
        raise self._unknown(tenant, f"model '{model[:200]}'", model)

    def aliases(self, tenant: str) -> dict[str, str]:
        """Return alias → job id, sorted by alias."""
        return dict(sorted(cast(dict[str, str], self._redis.hgetall(key(tenant, "aliases"))).items()))

    def aliases_of(self, tenant: str, job_id: str) -> tuple[str, ...]:
        """Return the aliases of a job's model."""
        return tuple(alias for alias, target in self.aliases(tenant).items() if target == job_id)

    def put_alias(self, tenant: str, alias: str, job_id: str) -> FinishedModel:
        """Point a new or existing alias to the model of a job. Raises NotFound or NotReady, as `get` does."""

        def point(pipe: Pipeline) -> None:
            self.get(tenant, job_id)
            pipe.multi()
            pipe.hset(key(tenant, "aliases"), alias, job_id)

        # Redis watches the record of the job. If the job is deleted during `point`, `point` runs again.
        self._redis.transaction(point, key(tenant, "job", job_id))
        return self.get(tenant, job_id)

    def delete_alias(self, tenant: str, alias: str) -> None:
        """Delete an alias, but not its model. Raises NotFound for an unknown alias."""
        if not self._redis.hdel(key(tenant, "aliases"), alias):
            raise self._unknown(tenant, f"alias '{alias[:200]}'", alias)

    def _unknown(self, tenant: str, what: str, alias: str) -> NotFound:
        hint = suggestion(alias, self.aliases(tenant), "List the models to see their aliases.")
        return NotFound(f"Unknown {what}. {hint}")


def _view(job: JobRecord, aliases: dict[str, str]) -> FinishedModel:
    summary = job.result.summary if job.result else None
    return FinishedModel(
        job=job.id,
        name=job.spec.name,
        aliases=tuple(alias for alias, target in aliases.items() if target == job.id),
        dataset=job.spec.dataset,
        corpus=job.spec.corpus,
        scale=job.spec.scale,
        metric=summary and summary.metric,
        score=summary and summary.score,
        finished_at=job.finished_at,
    )
