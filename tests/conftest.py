"""A clean environment for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

pytest_plugins = ["tests.redis_server", "tests.opensearch_server"]

UNCHANGED = {"TLM_SHARED_DATA"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the settings of the developer's shell from each test."""
    for name in list(os.environ):
        if name.startswith(("TLM_", "RAY_")) and name not in UNCHANGED:
            monkeypatch.delenv(name)
    yield
