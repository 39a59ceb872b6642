"""Fixtures for the tests of compression."""

from __future__ import annotations

import pytest

from tests.unit.compression.small_model import small_recipe
from tests.unit.training.conftest import one_thread
from tests.unit.training.made import made_prepared
from tlm_core.training.prepared import Prepared

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Return a generated task, prepared with `small_recipe`."""
    return Prepared(made_prepared(tmp_path_factory.mktemp("prepared"), small_recipe("modernbert"), alone=True))
