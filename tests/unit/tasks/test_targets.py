"""Regression targets: which columns are read so, what the report says, and data errors in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.tasks.make import faults, folder, jsonl, messages, put, rows, validate
from tlm_core.errors import InvalidRequest
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.task import Task
from tlm_core.tasks.validate import load_task, write_task

PEARSON = DatasetOptions(metric="pearson")


def targets(count: int, step: float = 0.25) -> list[dict[str, Any]]:
    return [{"text": f"text number {n}", "label": n * step} for n in range(count)]


def test_many_decimal_numbers_are_read_as_regression_and_the_report_says_so(tmp_path: Path) -> None:
    task, report = load_task(put(tmp_path / "all.jsonl", jsonl(targets(60))))
    assert not task.type.has_classes and task.metric == "pearson"
    assert "60 different decimal numbers" in messages(report, "warnings", "read_as_regression")[0]
    assert "validation and test were cut from train by regression target with seed 0" in " ".join(report["notes"])
    means = [task.targets(split).mean() for split in ("train", "validation", "test")]
    assert np.ptp(means) < 1.5  # of 0 to 14.75: small and large ones stand in each split


def test_few_decimal_numbers_are_classes_with_a_warning(tmp_path: Path) -> None:
    path = put(tmp_path / "all.jsonl", jsonl(rows(60, ("0.5", "1.25"))))
    task, report = load_task(path)
    assert task.labels == ("0.5", "1.25")
    assert "Set the metric pearson" in messages(report, "warnings", "decimal_labels")[0]
    assert load_task(path, PEARSON)[0].type.name == "regression"


@pytest.mark.parametrize("spelling", ["n/a", "0,5"])
def test_labels_that_are_nearly_all_numbers_advise_regression_once(tmp_path: Path, spelling: str) -> None:
    train = [*targets(60), {"text": "one", "label": spelling}]
    strings = [{**row, "label": str(row["label"])} for row in train]
    _, report = validate(folder(tmp_path, strings, strings[:3], strings[:3]))
    advice = "To predict numbers, set the metric pearson."
    assert [text.endswith(advice) for text in messages(report, "warnings", "rare_label")] == [True]
    assert messages(report, "warnings", "rare_label")[0].startswith("61 labels, such as")
    _, report = validate(folder(tmp_path, train, targets(3), targets(9, 0.3)))
    assert [text.endswith(advice) for text in messages(report, "faults", "unknown_label")] == [True] + [False] * 6
    _, report = validate(put(tmp_path / "all.jsonl", jsonl(train)))
    assert [text.endswith(advice) for text in messages(report, "faults", "rare_label")] == [True]
    _, report = validate(put(tmp_path / "many.jsonl", jsonl([*targets(2_000), train[-1]])))
    assert messages(report, "faults", "too_many_labels")[0].endswith(advice)


def test_labels_with_few_numbers_do_not_advise_regression(tmp_path: Path) -> None:
    words = [{"text": f"word {n}", "label": f"word {n}"} for n in range(10)]
    numbers = [{**row, "label": str(row["label"])} for row in targets(60)]
    _, report = validate(folder(tmp_path, [*numbers, *words], words[:3], words[:3]))
    assert len(messages(report, "warnings", "rare_label")) == 70
    assert not [entry for entry in report["warnings"] if "pearson" in entry["message"]]


def test_numbers_are_classes_where_a_metric_of_classes_is_given(tmp_path: Path) -> None:
    path = folder(tmp_path, targets(60), targets(30), targets(30))
    task, _ = load_task(path, DatasetOptions(metric="macro_f1"))
    assert len(task.labels) == 60


def test_many_whole_numbers_are_classes(tmp_path: Path) -> None:
    task, _ = load_task(folder(tmp_path, targets(60, 1.0), targets(30, 1.0), targets(30, 1.0)))
    assert task.type.has_classes and len(task.labels) == 60


@pytest.mark.parametrize("label", ["high", "nan", "inf", "1_000"])
def test_target_that_is_not_finite_is_a_data_error_with_its_row(tmp_path: Path, label: str) -> None:
    train = [*targets(5), {"text": "odd", "label": label}]
    path = folder(tmp_path, train, targets(3), targets(3))
    assert faults(path, PEARSON) == [("not_a_number", "train", 6, "label")]


def test_missing_target_and_equal_targets_are_data_errors(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", [*targets(5), {"text": "odd", "label": None}], targets(3), targets(3))
    assert faults(path, PEARSON) == [("null_label", "train", 6, "label")]
    path = folder(tmp_path / "b", rows(5, ("2.5",)), targets(3), targets(3))
    assert faults(path, PEARSON) == [("one_class", "train", None, "label")]


@pytest.mark.parametrize("label", ["1e19", "-1e300"])
def test_target_too_large_for_32_bits_is_a_data_error(tmp_path: Path, label: str) -> None:
    path = folder(tmp_path, [*targets(5), {"text": "odd", "label": label}], targets(3), targets(3))
    assert faults(path, PEARSON) == [("not_a_number", "train", 6, "label")]
    assert "is not between -1e+18 and 1e+18" in validate(path, PEARSON)[1]["faults"][0]["message"]


@pytest.mark.parametrize(("start", "step"), [(1.0, 1e-9), (1e15, 1.0), (0.0, 1e-60), (1e8, 8.0), (1e7, 5.0)])
def test_targets_too_close_for_32_bits_are_a_data_error(tmp_path: Path, start: float, step: float) -> None:
    near = [{"text": f"text {n}", "label": start + n * step} for n in range(5)]
    path = folder(tmp_path, near, targets(3), targets(3))
    assert faults(path, PEARSON) == [("one_class", "train", None, "label")]
    assert "in 32 bits" in validate(path, PEARSON)[1]["faults"][0]["message"]


@pytest.mark.parametrize(("start", "step"), [(1e6, 5.0), (1.7e9, 86_400.0), (1e-30, 1e-30)])
def test_targets_that_differ_enough_in_32_bits_are_valid(tmp_path: Path, start: float, step: float) -> None:
    apart = [{"text": f"text {n}", "label": start + n * step} for n in range(5)]
    assert faults(folder(tmp_path, apart, targets(3), targets(3)), PEARSON) == []


def test_regression_task_round_trips_through_files(tmp_path: Path) -> None:
    write_task(folder(tmp_path / "raw", targets(12), targets(3), targets(4)), tmp_path / "task", PEARSON)
    task = Task.read(tmp_path / "task")
    assert task.targets("test").tolist() == [0.0, 0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="regression targets, not labels"):
        task.label_ids("test")


def test_further_test_set_is_read_beside_test(tmp_path: Path) -> None:
    path = folder(tmp_path, rows(12))
    put(path / "test_other.jsonl", jsonl(rows(6, start="other")))
    task, report = load_task(path)
    assert task.counts["test_other"] == 6 and report["counts"]["test_other"] == 6
    (path / "test.jsonl").unlink()
    assert load_task(path)[0].further_tests == []  # alone it is the test set


def test_validation_that_cannot_choose_a_model_is_a_warning(tmp_path: Path) -> None:
    same = [{"text": f"other text {n}", "label": 1.5} for n in range(5)]
    _, report = load_task(folder(tmp_path / "a", targets(9), same, targets(3)), PEARSON)
    assert "validation lacks rows with different regression targets" in messages(report, "warnings", "no_choice")[0]
    path = folder(tmp_path / "b", rows(12), [{"text": "another", "label": "good"}], rows(4, start="test"))
    _, report = load_task(path, DatasetOptions(metric="f1", positive_label="bad"))
    assert "lacks a row with the label 'bad'" in messages(report, "warnings", "no_choice")[0]
    _, report = load_task(path, DatasetOptions(metric="f1", positive_label="good"))
    assert "no_choice" not in report["warning_counts"] and report["ok"]


def test_a_positive_label_needs_f1(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="needs the metric f1"):
        DatasetOptions(metric="accuracy", positive_label="yes")
    path = folder(tmp_path, rows(12))
    assert load_task(path, DatasetOptions(metric="f1", positive_label="bad"))[0].labels == ("good", "bad")
    with pytest.raises(InvalidRequest, match="Unknown positive label 'ugly'"):
        load_task(path, DatasetOptions(metric="f1", positive_label="ugly"))
