"""A clean environment for every test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["tests.redis_server", "tests.opensearch_server"]

UNCHANGED = {"TLM_SHARED_DATA"}
SERVERS = (
    "tests/chaos/", "tests/e2e/", "tests/integration/test_ray_nodes", "tests/integration/test_retriever",
    "tests/integration/test_stack", "tests/integration/test_study_kinds", "tests/contract/test_index",
)  # fmt: skip


def starts_servers(test: str) -> bool:
    return test.startswith(SERVERS) or "opensearch" in test


class ServersInOneProcess(LoadScopeScheduling):
    """Lets a single process run all tests that start servers. Distributes the other tests like the base class."""

    def _split_scope(self, nodeid: str) -> str:
        return "servers" if starts_servers(nodeid) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return ServersInOneProcess(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that start servers first, because they take longest."""
    items.sort(key=lambda item: starts_servers(item.nodeid), reverse=True)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the settings of the developer's shell from each test. Restore the hook that set_up_logging replaces."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in list(os.environ):
        if name.startswith(("TLM_", "RAY_")) and name not in UNCHANGED:
            monkeypatch.delenv(name)
    yield
