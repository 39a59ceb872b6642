"""Fixtures of the client tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def short_job_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept ids such as `job_1` as complete, so that commands send no request to resolve them."""
    monkeypatch.setattr("tlm_core.names.JOB_ID", r"job_\d+")
