"""Settings of the retriever, from TLM_RETRIEVER_* variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tlm_core.artifacts import ArtifactStore


class RetrieverSettings(BaseSettings):
    """Where the retriever listens, reads, writes and searches. It needs no Redis."""

    model_config = SettingsConfigDict(env_prefix="TLM_RETRIEVER_", env_ignore_empty=True)

    storage: str = Field(description="root of the artifacts: a folder or any fsspec address")
    scratch: Path = Field(description="local folder for files under way and the embedded indexes")
    host: str = "127.0.0.1"
    port: int = 8322
    internal_token: SecretStr = Field(min_length=1, description="what the other services show as bearer token")
    index: Literal["opensearch", "embedded"] = "embedded"
    opensearch_url: str = "http://127.0.0.1:9200"
    opensearch_user: str | None = None
    opensearch_password: SecretStr | None = None
    opensearch_ca: Path | None = Field(None, description="certificate authority of the cluster, a PEM file")
    opensearch_shards: int = Field(1, ge=1, description="shards of a new index; some ten million passages fit one")
    patience_seconds: float = Field(120.0, description="how long a search or load waits for a cluster that is away")
    selections_at_once: int = Field(2, ge=1)

    def artifact_store(self) -> ArtifactStore:
        # The gateway writes first: there are no passages to index, and no task to select for, before it has.
        return ArtifactStore(self.storage, self.scratch / "artifacts", is_new=lambda: False)
