"""Settings of the gateway."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServiceSettings
from tlm_core.training.recipe import Precision


class ApiSettings(ServiceSettings):
    """Environment variables TLM_API_*.

    Each process needs its own scratch folder, because a gateway deletes uploads and downloads there when it starts.
    """

    model_config = SettingsConfigDict(env_prefix="TLM_API_")

    host: str = "127.0.0.1"
    port: int = Field(8321, ge=0, le=65_535)
    token_file: Path = Field(description="File with the API token; created at the first start.")
    max_upload_bytes: int = Field(8 * 2**30, ge=1, description="Limit per request, over all files.")
    model_folders: tuple[Path, ...] = Field((), description="Folders with encoders and tokenizers that jobs may use.")
    sources: tuple[str, ...] = Field(
        (), description="Allowed address prefixes of corpora to fetch: s3://bucket/folder, hub:, …"
    )
    precision: Precision | None = Field(
        None, description="Meaning of `precision: auto`; unset: the best precision of this machine's processor."
    )
    worker_gpus: float | None = Field(
        None, ge=0, description="Value of TLM_TRAINER_WORKER_GPUS, for estimates; unset: as in the newest finished job."
    )
    predict_cache_bytes: int = Field(2**30, ge=1, description="Total size of cached models for predictions.")
    webhook_private: bool = Field(False, description="Allow webhooks over plain http and to private networks.")
