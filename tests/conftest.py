"""A clean environment for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

pytest_plugins = ["tests.redis_server", "tests.opensearch_server"]

UNCHANGED = {"TLM_SHARED_DATA"}
SERVERS = ("tests/chaos/", "tests/e2e/", "tests/integration/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process run the tests that start many servers, and the other processes the other files.

    The servers come first because they take longest.
    """

    def starts_servers(item: pytest.Item) -> bool:
        return item.nodeid.startswith(SERVERS) or item.get_closest_marker("opensearch") is not None

    for item in items:
        item.add_marker(pytest.mark.xdist_group("servers" if starts_servers(item) else item.location[0]))
    items.sort(key=starts_servers, reverse=True)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the settings of the developer's shell from each test."""
    for name in list(os.environ):
        if name.startswith(("TLM_", "RAY_")) and name not in UNCHANGED:
            monkeypatch.delenv(name)
    yield
