"""Settings that several services share: addresses and paths. The recipe holds the options that change a result."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import redis
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.history import History
from services.common.jobstore import JobStore
from services.common.redis_client import connect
from tlm_core.artifacts.store import ArtifactStore

if TYPE_CHECKING:
    from services.common.retriever_client import RetrieverClient


class ServiceSettings(BaseSettings):
    """Settings of gateway, loader and trainer. Each service adds settings, and a prefix of variables such as TLM_API_.

    An empty environment variable counts as unset, because Compose passes an empty variable if `.env` lacks
    the variable. Errors do not show values, because some values are secrets.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, hide_input_in_errors=True)
    idle_connections: ClassVar[int] = 4  # most connections to Redis that stay open without a call

    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_password: SecretStr | None = None
    storage: str = Field(description="root of the artifacts: a folder or an fsspec address")
    scratch: Path = Field(description="local folder for temporary files; may be emptied between runs")
    metrics_host: str = "0.0.0.0"  # address at which a process without an HTTP API serves its metrics to Prometheus
    retriever_url: str = "http://127.0.0.1:8322"
    internal_token: SecretStr = SecretStr("")

    def job_store(self) -> JobStore:
        return JobStore(self.redis, History(self.artifact_store()))

    def artifact_store(self) -> ArtifactStore:
        return ArtifactStore(self.storage, self.scratch / "artifacts", is_new=JobStore(self.redis).is_empty)

    @cached_property
    def redis(self) -> redis.Redis:
        password = self.redis_password.get_secret_value() if self.redis_password else None
        return connect(self.redis_url, password=password, idle_connections=self.idle_connections)

    @property
    def heartbeat(self) -> Path:
        """The file that a process without an HTTP API touches while it works. A health probe reads the file's time."""
        return self.scratch / "heartbeat"

    def retriever(self) -> RetrieverClient:
        import httpx  # Workers need no client, so they do not import it.

        from services.common.retriever_client import RetrieverClient

        headers = {"Authorization": f"Bearer {self.internal_token.get_secret_value()}"}
        return RetrieverClient(httpx.Client(base_url=self.retriever_url, headers=headers, timeout=10, trust_env=False))
