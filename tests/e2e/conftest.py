"""One embedded stack for all end-to-end tests, with a small task that can be learned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import Stack, run_stack, write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Stack]:
    with run_stack(tmp_path_factory.mktemp("embedded") / "data", data) as stack:
        yield stack
