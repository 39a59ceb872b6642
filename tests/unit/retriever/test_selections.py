"""How far a selection is, as the retriever tells it."""

from __future__ import annotations

from services.retriever.selections import Run


def test_the_rate_counts_what_this_process_did_only() -> None:
    run = Run("t/a/1")
    run.told(3000, 10_000, "queries", 100.0)
    assert (run.done, run.total, run.rate) == (3000, 10_000, None)
    run.told(3500, 10_000, "queries", 110.0)
    assert run.rate == 50.0


def test_a_new_pass_has_its_own_rate() -> None:
    run = Run("t/a/1")
    run.told(0, 500, "queries", 0.0)
    run.told(500, 500, "queries", 5.0)
    run.told(4096, 300_000, "passages", 6.0)
    assert (run.unit, run.rate) == ("passages", None)
    run.told(8192, 300_000, "passages", 7.0)
    assert run.rate == 4096.0
    run.told(4096, 300_000, "passages", 60.0)
    assert run.rate is None, "the corpus is gone over a second time"
