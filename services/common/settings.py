"""Settings that several services share. The environment says where things are; the recipe says what to do."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.jobstore import JobStore, connect
from tlm_core.artifacts import ArtifactStore


class StoreSettings(BaseSettings):
    """Where job state and artifacts are kept; each service adds its own and gives the prefix of the variables.

    A variable that is empty counts as one that is not there: Compose passes on what `.env` lacks as an empty one.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True)

    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_password: SecretStr | None = None
    storage: str = Field(description="root of the artifacts: a folder or any fsspec address")
    scratch: Path = Field(description="local folder for files under way; may be emptied between runs")

    def job_store(self) -> JobStore:
        password = self.redis_password.get_secret_value() if self.redis_password else None
        return JobStore(connect(self.redis_url, password=password))

    def artifact_store(self) -> ArtifactStore:
        return ArtifactStore(self.storage, self.scratch / "artifacts", new=self.job_store().knows_no_files)
