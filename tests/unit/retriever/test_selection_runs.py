"""The progress of a selection."""

from __future__ import annotations

from services.retriever.selection_runs import SelectingRun


def test_rate_ignores_work_of_an_earlier_process() -> None:
    run = SelectingRun(prefix="t/a/1")
    run.report(3000, 10_000, "queries", 100.0)
    assert (run.status.done, run.status.total, run.status.rate) == (3000, 10_000, None)
    run.report(3500, 10_000, "queries", 110.0)
    assert run.status.rate == 50.0


def test_each_scan_has_its_own_rate() -> None:
    run = SelectingRun(prefix="t/a/1")
    run.report(0, 500, "queries", 0.0)
    run.report(500, 500, "queries", 5.0)
    run.report(4096, 300_000, "passages", 6.0)
    assert (run.status.unit, run.status.rate) == ("passages", None)
    run.report(8192, 300_000, "passages", 7.0)
    assert run.status.rate == 4096.0
    run.report(4096, 300_000, "passages", 60.0)
    assert run.status.rate is None, "a second scan starts"
