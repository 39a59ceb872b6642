"""Validate a container's environment with the settings of its service."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic_settings import BaseSettings

from services.api.settings import ApiSettings
from services.loader.__main__ import LoaderSettings
from services.retriever.app import RetrieverSettings
from services.trainer.settings import TrainerSettings

SETTINGS: Mapping[str, type[BaseSettings]] = {
    "api": ApiSettings,
    "loader": LoaderSettings,
    "retriever": RetrieverSettings,
    "trainer": TrainerSettings,
}


def check_environment(service: str, environment: Mapping[str, str]) -> Any:
    """Return the settings of `service` in `environment`. Fails for unknown names and invalid values."""
    settings = SETTINGS[service]
    prefix = settings.model_config["env_prefix"]
    names = {name for name in environment if name.startswith("TLM_")}
    known = {f"{prefix}{field}".upper() for field in settings.model_fields}
    assert names <= known, f"unknown settings of {service}: {sorted(names - known)}"
    assert not [name for name in os.environ if name.startswith("TLM_") and name != "TLM_SHARED_DATA"]
    os.environ.update({name: environment[name] for name in names})
    try:
        return settings()
    finally:
        for name in names:
            del os.environ[name]
