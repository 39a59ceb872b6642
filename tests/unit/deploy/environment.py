"""Whether a container's environment is one that its process understands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic_settings import BaseSettings

from services.api.settings import ApiSettings
from services.retriever.settings import RetrieverSettings
from services.trainer.settings import TrainerSettings

SETTINGS: Mapping[str, type[BaseSettings]] = {
    "api": ApiSettings,
    "retriever": RetrieverSettings,
    "trainer": TrainerSettings,
}


def check_environment(process: str, environment: Mapping[str, str]) -> Any:
    """The settings of `process` read from `environment` alone. Raises for names it does not know and bad values."""
    settings = SETTINGS[process]
    prefix = settings.model_config["env_prefix"]
    ours = {name for name in environment if name.startswith("TLM_")}
    known = {f"{prefix}{field}".upper() for field in settings.model_fields}
    assert ours <= known, f"no settings of {process}: {sorted(ours - known)}"
    assert not [name for name in os.environ if name.startswith("TLM_") and name != "TLM_SHARED_DATA"]
    os.environ.update({name: environment[name] for name in ours})
    try:
        return settings()
    finally:
        for name in ours:
            del os.environ[name]
