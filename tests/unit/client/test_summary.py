"""Reports as lines of the terminal."""

from __future__ import annotations

import pytest

from tlm_client.summary import report_items

SCORES = {"macro_f1": 0.5, "micro_f1": 0.6, "accuracy": 0.6}
REPORT = {
    "metric": "macro_f1", "seeds": [{"seed": 0}], "mean": {"test": SCORES}, "spread": {"test": dict.fromkeys(SCORES)},
    "majority": {"test": SCORES}, "cost": {"total": {"flops": 1e9, "tokens": 9.0, "seconds": 5.0}},
}  # fmt: skip


def test_cost_without_an_encoder_is_its_time() -> None:
    cost = {"cost": {"total": {"flops": 0.0, "tokens": 0.0, "seconds": 5.0}}}
    assert report_items({**REPORT, **cost})[-1] == "Cost: 5 seconds of training"


def test_time_of_training_is_stated_once() -> None:
    report = {**REPORT, "gain": {"words": "It is better, for 5 seconds of training."}}
    assert report_items(report)[-1] == "Cost: 1.00e+09 FLOPs, 9 tokens"


@pytest.mark.parametrize("words", [{}, {"words": "The ticket is better."}])
def test_report_shows_its_warnings(words: dict[str, str]) -> None:
    items = report_items({**REPORT, **words, "warnings": ["9 of 10 test texts are cut."]})
    assert "Warning: 9 of 10 test texts are cut." in items
    assert not [item for item in report_items({**REPORT, **words}) if str(item).startswith("Warning")]


def test_study_on_few_test_rows_shows_a_warning() -> None:
    study = {**REPORT, "words": "The ticket is better.", "seeds": [{"seed": 0, "test": {"rows": 15}}]}
    assert report_items(study)[1] == "Test has only 15 rows, so its scores are imprecise."
