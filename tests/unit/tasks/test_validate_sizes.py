"""The warning about splits in which chance decides."""

from __future__ import annotations

from pathlib import Path

from tests.unit.tasks.make import jsonl, messages, put
from tlm_core.tasks.validate import load_task


def texts(split: str, count: int) -> list[dict[str, str]]:
    return [{"text": f"{split} text {n}", "label": ("bad", "good")[n % 2]} for n in range(count)]


def test_splits_cut_from_few_rows_are_a_warning(tmp_path: Path) -> None:
    task, report = load_task(put(tmp_path / "all.jsonl", jsonl(texts("train", 60))))
    assert task is not None
    validation, test = messages(report, "warnings", "few_rows")
    assert validation.startswith("validation has 6 rows, so it cannot compare models")
    assert test == "test has 6 rows, so its scores are imprecise. Add rows, at least up to 30."


def test_thirty_rows_are_no_warning(tmp_path: Path) -> None:
    files = {
        split: put(tmp_path / f"{split}.jsonl", jsonl(texts(split, count)))
        for split, count in (("train", 40), ("validation", 30), ("test", 29))
    }
    _, report = load_task(files)
    assert [entry["split"] for entry in report["warnings"] if entry["code"] == "few_rows"] == ["test"]
