"""Fixtures for the tests of studies."""

from __future__ import annotations

from tests.unit.training.conftest import one_thread

__all__ = ["one_thread"]
