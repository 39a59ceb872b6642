"""Columns are inferred with a reason, and an unknown name is reported with the nearest one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.tasks.make import faults, folder, jsonl, messages, put, rows, validate
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.validate import load_task


def csv_set(root: Path, header: str, *lines: str) -> Path:
    content = "\n".join([header, *lines]) + "\n"
    for split in ("train", "dev", "test"):
        put(root / f"{split}.csv", content)
    return root


def test_usual_names_are_known_whatever_the_case(tmp_path: Path) -> None:
    source = csv_set(tmp_path, "Id,Text,LABEL", "1,a b,x", "2,c d,y", "3,e,x", "4,f,y")
    task, report = load_task(source)
    assert task.texts("train") == ["a b", "c d", "e", "f"]
    assert task.labels == ("x", "y")
    assert "label: column 'LABEL', by its name" in report["notes"]
    assert "columns not used: Id" in report["notes"]


def test_label_and_text_columns_are_inferred_from_their_values(tmp_path: Path) -> None:
    lines = [f"{n},some longer words {n},{'abc'[n % 3]}" for n in range(12)]
    task, report = load_task(csv_set(tmp_path, "nr,z,q", *lines))
    assert task.labels == ("a", "b", "c")
    assert task.texts("train")[0] == "some longer words 0"
    assert "label: column 'q' has 3 distinct values in 12 rows" in report["notes"]
    assert any(note.startswith("text: column 'z' has the longest values") for note in report["notes"])


def test_several_possible_label_columns_are_a_warning(tmp_path: Path) -> None:
    lines = [f"long words {n},{n % 2},{n % 3}" for n in range(12)]
    _, report = load_task(csv_set(tmp_path, "z,p,q", *lines))
    assert "is read as the label; other candidates: 'q'." in messages(report, "warnings", "guessed_column")[0]


def test_options_decide(tmp_path: Path) -> None:
    lines = [f"words {n},{n % 2},{n % 3},title {n}" for n in range(12)]
    options = DatasetOptions(
        text_column="title", label_column="q", metric="accuracy", language="de", name="mine", text_pair_column="text"
    )
    task, _ = load_task(csv_set(tmp_path, "text,label,q,title", *lines), options)
    assert (task.name, task.metric, task.language, task.labels) == ("mine", "accuracy", "de", ("0", "1", "2"))
    assert task.texts("train")[0] == "title 0"
    assert task.text_pairs("train") == task_texts(12)


def task_texts(count: int) -> list[str]:
    return [f"words {n}" for n in range(count)]


def test_pairs_are_known_by_their_names_and_can_be_turned_off(tmp_path: Path) -> None:
    source = csv_set(tmp_path, "premise,hypothesis,label", *(f"p{n},h{n},{n % 2}" for n in range(4)))
    task, report = load_task(source)
    assert task.pair
    assert task.text_pairs("test") == ["h0", "h1", "h2", "h3"]
    assert any(note.startswith("text pair: column 'hypothesis'") for note in report["notes"])
    task, _ = load_task(source, DatasetOptions(text_pair_column=""))
    assert not task.pair
    assert task.text_pairs("test") is None


@pytest.mark.parametrize("document", [{"data": rows(20)}, {"version": "1", "data": {"rows": rows(20)}}])
def test_json_document_around_the_rows_is_explained(tmp_path: Path, document: dict[str, Any]) -> None:
    _, report = validate(put(tmp_path / "train.json", json.dumps(document)))
    assert [fault["code"] for fault in report["faults"]] == ["missing_column"]
    assert "has one row, and its 'data' is a list or object. Write one object" in report["faults"][0]["message"]


def test_missing_column_error_suggests_the_nearest_name(tmp_path: Path) -> None:
    source = csv_set(tmp_path, "text,label", "a,x", "b,y")
    assert faults(source, DatasetOptions(label_column="Label"))[0] == ("missing_column", "train", None, "Label")
    _, report = validate(source, DatasetOptions(text_column="body"))
    assert "has no column 'body'. Its columns are 'text', 'label'." in report["faults"][0]["message"]
    _, report = validate(source, DatasetOptions(label_column="Label"))
    assert "Did you mean 'label'?" in report["faults"][0]["message"]


def test_a_column_missing_in_one_split_only(tmp_path: Path) -> None:
    source = folder(tmp_path, rows(4), test=[{"text": "a"}, {"text": "b"}])
    assert faults(source) == [("missing_column", "test", None, "label")]
    advice = "If it has no labels, add them, or leave this file out."
    assert validate(source)[1]["faults"][0]["message"].endswith(advice)
    (source / "test.jsonl").unlink()
    put(source / "test.csv", "text\na\nb\n")
    (fault,) = validate(source)[1]["faults"]
    assert fault["code"] == "missing_column" and fault["message"].endswith(advice)


def test_table_without_label_or_text_column_is_a_data_error(tmp_path: Path) -> None:
    source = csv_set(tmp_path, "z,q", *(f"words {n},{n}" for n in range(10)))
    assert faults(source) == [("missing_column", "train", None, None)]
    _, report = validate(source)
    assert "'z' 10, 'q' 10" in report["faults"][0]["message"]
    assert faults(csv_set(tmp_path, "label", "x", "y"))[0][0] == "missing_column"


def test_file_without_header_is_a_data_error(tmp_path: Path) -> None:
    lines = [f"{1 + n % 3},some words {n}" for n in range(12)]
    assert faults(csv_set(tmp_path, "2,the first words", *lines)) == [("no_header", "train", None, "2")]


def test_columns_without_a_name_are_ignored(tmp_path: Path) -> None:
    task, report = load_task(csv_set(tmp_path, ",text,label,", "0,a,x,", "1,b,y,"))
    assert task.texts("train") == ["a", "b"]
    assert any("without a name" in note for note in report["notes"])


def test_a_key_that_only_some_records_have_is_a_column(tmp_path: Path) -> None:
    records = [{"text": "a", "label": "x"}, {"label": "y", "text": "b", "extra": 1}]
    for split in ("train", "dev", "test"):
        put(tmp_path / f"{split}.jsonl", jsonl(records))
    _, report = load_task(tmp_path)
    assert "columns not used: extra" in report["notes"]
