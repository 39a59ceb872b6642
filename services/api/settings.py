"""Settings of the gateway."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.common.settings import StoreSettings
from tlm_core.training.recipe import Precision


class ApiSettings(StoreSettings):
    """Read from TLM_API_*. The scratch folder is this process's alone: it is emptied of uploads at each start."""

    model_config = SettingsConfigDict(env_prefix="TLM_API_")

    host: str = "127.0.0.1"
    port: int = Field(8321, ge=0, le=65_535)
    token_file: Path = Field(description="holds the API token; made at the first start")
    retriever_url: str = "http://127.0.0.1:8322"
    internal_token: SecretStr = SecretStr("")
    max_upload_bytes: int = Field(8 * 2**30, ge=1, description="of one request, all its files together")
    model_folders: tuple[Path, ...] = Field((), description="folders whose encoders and tokenizers jobs may start from")
    sources: tuple[str, ...] = Field((), description="what corpora may be fetched from: s3://bucket/folder, hub:, …")
    precision: Precision | None = Field(
        None,
        description="the meaning of `precision: auto`; unset: what this machine's processor computes natively",
    )
    predict_cache_bytes: int = Field(2**30, ge=1, description="models kept ready for predictions, by their size")
    webhook_private: bool = Field(False, description="send webhooks over plain http and to private networks too")
