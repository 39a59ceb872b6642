"""The warning about splits in which chance decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.tasks.make import jsonl, messages, put
from tlm_core.tasks.validate import load_task


def texts(split: str, count: int) -> list[dict[str, str]]:
    return [{"text": f"{split} text {n}", "label": ("bad", "good")[n % 2]} for n in range(count)]


def test_splits_cut_from_few_rows_are_a_warning(tmp_path: Path) -> None:
    task, report = load_task(put(tmp_path / "all.jsonl", jsonl(texts("train", 60))))
    assert task is not None
    validation, test = messages(report, "warnings", "few_rows")
    effect = "so jobs return a combination of models without comparing them, except at the scale instant"
    needed = "For this, the file needs about"
    assert validation == f"validation has 6 rows, {effect}. Add rows until it has 100. {needed} 1,000 rows."
    assert test == f"test has 6 rows, so its scores are imprecise. Add rows until it has 30. {needed} 300 rows."


@pytest.mark.parametrize(
    ("validation", "test", "warned"), [(100, 29, ["test"]), (99, 30, ["validation"]), (100, 30, [])]
)
def test_enough_rows_are_no_warning(validation: int, test: int, warned: list[str], tmp_path: Path) -> None:
    files = {
        split: put(tmp_path / f"{split}.jsonl", jsonl(texts(split, count)))
        for split, count in (("train", 40), ("validation", validation), ("test", test))
    }
    _, report = load_task(files)
    assert [entry["split"] for entry in report["warnings"] if entry["code"] == "few_rows"] == warned
    assert "the file needs" not in " ".join(messages(report, "warnings", "few_rows"))
