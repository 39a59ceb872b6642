"""Reports as lines of the terminal."""

from __future__ import annotations

import pytest

from tlm_client.summary import report_items

SCORES = {"macro_f1": 0.5, "micro_f1": 0.6, "accuracy": 0.6}
REPORT = {
    "metric": "macro_f1", "seeds": [{"seed": 0}], "mean": {"test": SCORES}, "spread": {"test": dict.fromkeys(SCORES)},
    "majority": {"test": SCORES}, "cost": {"total": {"flops": 1e9, "tokens": 9.0, "seconds": 5.0}},
}  # fmt: skip


@pytest.mark.parametrize("words", [{}, {"words": "The ticket is better."}])
def test_report_shows_its_warnings(words: dict[str, str]) -> None:
    items = report_items({**REPORT, **words, "warnings": ["9 of 10 test texts are cut."]})
    assert "Warning: 9 of 10 test texts are cut." in items
    assert not [item for item in report_items({**REPORT, **words}) if str(item).startswith("Warning")]
