"""Aliases of models: names such as `reviews@production` that mean one finished job, until they are moved to another."""

from __future__ import annotations

from typing import cast

import redis

from services.common.redis_client import key, translated_errors
from tlm_core.errors import Conflict, NotFound


class Aliases:
    """The aliases of each tenant, in Redis. Raises StoreUnavailable or StoreFull."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def all(self, tenant: str) -> dict[str, str]:
        """Return the job id of each alias, sorted by alias."""
        with translated_errors():
            return dict(sorted(cast(dict[str, str], self._redis.hgetall(key(tenant, "aliases"))).items()))

    def job(self, tenant: str, model: str) -> str:
        """Return the job id that `model` means: an alias, or a job id itself. Raises NotFound for an unknown alias."""
        if "@" not in model:
            return model
        with translated_errors():
            job = cast(str | None, self._redis.hget(key(tenant, "aliases"), model))
        if job is None:
            raise NotFound(f"Unknown model '{model[:200]}'. List the models to see their aliases.")
        return job

    def put(self, tenant: str, alias: str, job: str) -> None:
        """Point an alias to a job. It may be new or point elsewhere."""
        with translated_errors():
            self._redis.hset(key(tenant, "aliases"), alias, job)

    def remove(self, tenant: str, alias: str) -> None:
        """Raises NotFound for an unknown alias."""
        with translated_errors():
            if not self._redis.hdel(key(tenant, "aliases"), alias):
                raise NotFound(f"Unknown alias '{alias[:200]}'. List the models to see their aliases.")

    def check_unused(self, tenant: str, job: str) -> None:
        """Raises Conflict if an alias points to the job."""
        if aliases := [alias for alias, target in self.all(tenant).items() if target == job]:
            raise Conflict(f"Job {job} is the model '{aliases[0]}'. Point the alias to another job or delete it first.")
