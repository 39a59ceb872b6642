"""The log of a job whose last artifact ends it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.contract.coordinator_harness import CoordinatorHarness, T
from tlm_core.artifacts import ManifestRef
from tlm_core.jobs.states import State


def test_log_states_that_the_last_stage_has_finished(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    coordinator, job_id = harness.coordinator(), harness.submit()
    publish = harness.store.publish

    def publish_and_finish(*args: Any, **values: Any) -> ManifestRef:
        ref = publish(*args, **values)
        if values["node"] == "export":
            coordinator.round()
            assert harness.job(job_id).state is State.SUCCEEDED
        return ref

    monkeypatch.setattr(harness.store, "publish", publish_and_finish)
    harness.work(harness.until_submitted(coordinator, job_id))
    lines = [line["line"] for line in harness.store.logs(T, job_id)]
    assert lines[-2:] == ["info Started export", "info Finished export"]
