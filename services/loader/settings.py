"""Settings of the loader."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from services.common.settings import StoreSettings


class LoaderSettings(StoreSettings):
    """Read from TLM_LOADER_*."""

    model_config = SettingsConfigDict(env_prefix="TLM_LOADER_")

    retriever_url: str = "http://127.0.0.1:8322"
    internal_token: SecretStr = SecretStr("")
    metrics_port: int | None = None  # at which the loader shows its figures to Prometheus

    @property
    def heartbeat(self) -> Path:
        """File that the loader touches while it works. A health probe reads its time."""
        return self.scratch / "heartbeat"
