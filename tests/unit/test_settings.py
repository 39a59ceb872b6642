"""Settings of the services, from environment variables."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from services.api.settings import ApiSettings
from services.loader.__main__ import LoaderSettings
from services.retriever.app import RetrieverSettings
from services.trainer.settings import TrainerSettings


@pytest.mark.parametrize("settings", [ApiSettings, LoaderSettings, RetrieverSettings, TrainerSettings])
def test_error_for_a_missing_setting_shows_no_secret(
    settings: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{settings.model_config['env_prefix']}REDIS_PASSWORD", "s3cr3t")
    with pytest.raises(ValidationError, match="storage\n  Field required") as refused:
        settings()
    assert "s3cr3t" not in str(refused.value)
