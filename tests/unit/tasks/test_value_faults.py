"""Invalid values are reported with row and column; warnings stop nothing."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.tasks.make import faults, folder, jsonl, messages, put, rows, validate
from tlm_core.errors import InvalidDataset, InvalidRequest
from tlm_core.tasks import limits
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.validate import load_task


def with_rows(extra: list[Any]) -> list[Any]:
    return [*rows(4), *extra]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"text": None, "label": "bad"}, ("null_text", "train", 5, "text")),
        ({"label": "bad"}, ("null_text", "train", 5, "text")),
        ({"text": "", "label": "bad"}, ("blank_text", "train", 5, "text")),
        ({"text": " \t\u3000\n", "label": "bad"}, ("blank_text", "train", 5, "text")),
        ({"text": 17, "label": "bad"}, ("not_text", "train", 5, "text")),
        ({"text": ["a"], "label": "bad"}, ("not_text", "train", 5, "text")),
        ({"text": "x", "label": None}, ("null_label", "train", 5, "label")),
        ({"text": "x"}, ("null_label", "train", 5, "label")),
        ({"text": "x", "label": float("nan")}, ("null_label", "train", 5, "label")),
        ({"text": "x", "label": "  "}, ("null_label", "train", 5, "label")),
        ({"text": "x", "label": 3}, ("mixed_types", "train", 5, "label")),
        ({"text": "x", "label": True}, ("mixed_types", "train", 5, "label")),
        ({"text": "x", "label": ["bad"]}, ("not_a_label", "train", 5, "label")),
        ({"text": "x", "label": {"a": 1}}, ("not_a_label", "train", 5, "label")),
        ({"text": "a\x00b", "label": "bad"}, ("bad_character", "train", 5, "text")),
        ({"text": "x", "label": "bad\x00"}, ("bad_character", "train", 5, "label")),
        ({"text": "x", "label": "b" * 1_001}, ("label_too_long", "train", 5, "label")),
        ({"text": "x" * 1_000_001, "label": "bad"}, ("text_too_long", "train", 5, "text")),
    ],
)
def test_invalid_value_is_a_data_error(tmp_path: Path, record: dict[str, Any], fault: tuple[Any, ...]) -> None:
    assert faults(folder(tmp_path, with_rows([record]))) == [fault]


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    train = (
        jsonl(rows(4)) + '{"text": "a \\ud800 b", "label": "bad"}\n{"text": "fine \\ud83d\\ude00", "label": "bad"}\n'
    )
    assert faults(folder(tmp_path, train)) == [("bad_character", "train", 5, "text")]
    train = jsonl(rows(4)) + '{"text": "a", "label": "bad", "x\\udc00": 1}\n'
    assert faults(folder(tmp_path, train)) == [("bad_character", "train", None, "x?")]


def test_null_and_blank_values_of_csv(tmp_path: Path) -> None:
    source = folder(tmp_path, rows(4))
    (source / "train.jsonl").unlink()
    put(source / "train.csv", "text,label\na,bad\n,good\nb,\nc,good\n")
    assert faults(source) == [("blank_text", "train", 2, "text"), ("null_label", "train", 3, "label")]


def test_all_data_errors_are_reported(tmp_path: Path) -> None:
    source = folder(
        tmp_path,
        with_rows([{"text": "", "label": "bad"}, {"text": "x", "label": None}, {"text": None, "label": 1}]),
        validation=[{"text": "v", "label": "Good "}, {"text": " ", "label": "good"}],
        test=[{"text": "t", "label": "unheard"}],
    )
    assert set(faults(source)) == {
        ("blank_text", "train", 5, "text"),
        ("null_label", "train", 6, "label"),
        ("null_text", "train", 7, "text"),
        ("mixed_types", "train", 7, "label"),
        ("unknown_label", "validation", 1, "label"),
        ("blank_text", "validation", 2, "text"),
        ("unknown_label", "test", 1, "label"),
    }


def test_at_most_100_errors_per_code_are_listed_and_all_counted(tmp_path: Path) -> None:
    source = folder(tmp_path, with_rows([{"text": "", "label": "bad"}] * 250))
    _, report = validate(source)
    assert [fault["row"] for fault in report["faults"]] == list(range(5, 105))
    with pytest.raises(InvalidDataset, match=r"250 data errors in the dataset .*Row 5 of train.jsonl"):
        load_task(source)


def test_lists_instead_of_texts_are_not_reported_as_null(tmp_path: Path) -> None:
    source = folder(tmp_path, with_rows([{"text": ["a"], "label": "bad"}] * 150 + [{"text": None, "label": "bad"}]))
    with pytest.raises(InvalidDataset, match=r"151 data errors in the dataset \(150 x not_text, 1 x null_text\)"):
        load_task(source)


@pytest.mark.parametrize("metric", ["macro_f1", "pearson"])
def test_unread_parquet_values_are_reported_with_their_kind(tmp_path: Path, metric: str) -> None:
    days = [None, datetime.date(2020, 1, 2), datetime.date(2020, 1, 3)]
    table = pa.table({"text": [b"\xff", b"plain", None], "label": days})
    pq.write_table(table, tmp_path / "train.parquet")
    _, report = validate(tmp_path / "train.parquet", DatasetOptions(metric=metric))
    messages_by_row = {(fault["code"], fault["row"]): fault["message"] for fault in report["faults"]}
    assert set(messages_by_row) == {
        ("not_text", 1),
        ("null_text", 3),
        ("null_label", 1),
        ("not_a_label", 2),
        ("not_a_label", 3),
    }
    assert messages_by_row["not_text", 1].endswith(
        "column 'text', is a piece of binary data, not a text. Write it as UTF-8 text."
    )
    assert messages_by_row["not_a_label", 2].endswith("column 'label', is a date or time. Write it as text.")


def test_at_most_100_unknown_labels_are_listed_and_all_counted(tmp_path: Path) -> None:
    test = [{"text": f"t{n}", "label": f"new {n:03}"} for n in range(130)]
    _, report = validate(folder(tmp_path, rows(4), test=test))
    assert report["message"].startswith("130 data errors in the dataset (130 x unknown_label):")
    assert [fault["row"] for fault in report["faults"]] == list(range(1, 101))


def test_unknown_label_error_suggests_the_nearest_label(tmp_path: Path) -> None:
    train = rows(6, ("positive", "negative"))
    test = [{"text": "a", "label": "positive"}, *({"text": "b", "label": "Positive "} for _ in range(3))]
    source = folder(tmp_path, train, validation=[{"text": "c", "label": "negativ"}], test=test)
    assert set(faults(source)) == {
        ("unknown_label", "validation", 1, "label"),
        ("unknown_label", "test", 2, "label"),
    }
    texts = messages(validate(source)[1], "faults", "unknown_label")
    assert any(
        "(in 3 rows)" in text and "differs from 'positive' only in case, spaces or number format" in text
        for text in texts
    )
    assert any("Did you mean 'negative'?" in text for text in texts)


def test_one_class_only(tmp_path: Path) -> None:
    source = folder(tmp_path, rows(6, ("good",)), validation=rows(1, ("good",)), test=rows(1, ("good",)))
    assert faults(source) == [("one_class", "train", None, "label")]


def test_too_many_labels_are_a_data_error(tmp_path: Path) -> None:
    train = [{"text": f"t{n}", "label": f"label {n}"} for n in range(10_000)]
    source = folder(tmp_path, train, validation=train[:5], test=train[:5])
    assert faults(source) == [("too_many_labels", "train", None, "label")]
    assert "Set another label_column, or merge labels." in validate(source)[1]["faults"][0]["message"]


def test_label_with_one_row_is_a_warning_in_given_splits(tmp_path: Path) -> None:
    train = with_rows([{"text": "x", "label": "rare"}])
    task, report = load_task(folder(tmp_path, train))
    assert task.labels == ("bad", "good", "rare")
    assert "The label 'rare' has one row in train.jsonl" in messages(report, "warnings", "rare_label")[0]


def test_a_label_with_one_row_blocks_a_split_by_label(tmp_path: Path) -> None:
    source = put(tmp_path / "all.jsonl", jsonl([*rows(40), {"text": "x", "label": "rare"}]))
    assert faults(source) == [("rare_label", "train", None, None)]


def test_rare_label_is_reported_with_invalid_rows(tmp_path: Path) -> None:
    single = [*rows(20), {"text": "a rare one", "label": "rare"}, {"text": "", "label": "bad"}]
    codes = {code for code, *_ in faults(put(tmp_path / "all.jsonl", jsonl(single)))}
    assert codes == {"rare_label", "blank_text"}


def test_too_few_rows_to_cut_from(tmp_path: Path) -> None:
    assert faults(put(tmp_path / "all.jsonl", jsonl(rows(9)))) == [("too_few_rows", "train", None, None)]
    copies = [{"text": "the same", "label": str(n % 2)} for n in range(50)]
    assert faults(put(tmp_path / "all.jsonl", jsonl(copies))) == [("too_few_rows", "train", None, None)]


def test_labels_that_differ_in_case_or_blanks_are_a_warning(tmp_path: Path) -> None:
    train = with_rows([{"text": "x", "label": "Good"}, {"text": "y", "label": "Good"}])
    task, report = load_task(folder(tmp_path, train))
    assert task.labels == ("Good", "bad", "good")
    assert "'Good' (2 rows) and 'good' (2 rows)" in messages(report, "warnings", "label_variants")[0]


def test_two_spellings_of_a_number_are_a_warning(tmp_path: Path) -> None:
    train = rows(8, ("0", "1", "1.0", "2024"))
    _, report = validate(folder(tmp_path, train, train[:2], train[:2]))
    assert messages(report, "warnings", "label_variants")[0].startswith(
        "The labels '1' (2 rows) and '1.0' (2 rows) of train.jsonl differ only"
    )
    _, report = validate(folder(tmp_path, train, rows(2, ("0.0", "2024"), "v"), rows(2, ("0", "02024"), "t")))
    texts = messages(report, "faults", "unknown_label")
    assert ["differs from '0' only" in texts[0], "differs from '2024' only" in texts[1]] == [True, True]


def test_long_numbers_are_not_compared_as_floats(tmp_path: Path) -> None:
    train = rows(8, ("90071992547409921", "90071992547409922"))
    _, report = validate(folder(tmp_path, train, train[:2], train[:2]))
    assert not messages(report, "warnings", "label_variants")


def test_labels_with_blanks_at_an_end_are_a_warning(tmp_path: Path) -> None:
    padded = "".join(f"text {n}, {'bad' if n % 2 else 'good'}\n" for n in range(40))
    path = put(tmp_path / "all.csv", f"text, label\n{padded}")
    task, report = load_task(path)
    assert task.labels == (" bad", " good")
    assert messages(report, "warnings", "label_variants") == [
        "The labels ' bad', ' good' of all.csv (split train) begin or end with spaces. Spaces are part of a label. "
        "Remove them."
    ]
    with pytest.raises(InvalidRequest, match="Unknown positive label 'good'"):
        load_task(path, DatasetOptions(metric="f1", positive_label="good"))


def test_positive_label_without_f1_is_reported_as_ignored(tmp_path: Path) -> None:
    _, report = load_task(put(tmp_path / "all.jsonl", jsonl(rows(40))), DatasetOptions(positive_label="good"))
    assert "positive label 'good' is ignored: it needs the metric f1" in report["notes"]


@pytest.mark.parametrize("labels", [("0.5", "1.25"), (1.0, 0.5, -2.25), ("1", "+1.5")])
def test_decimal_labels_are_a_warning(tmp_path: Path, labels: Sequence[Any]) -> None:
    train = rows(9, labels)
    _, report = load_task(folder(tmp_path, train, validation=train[:3], test=train[:3]))
    assert messages(report, "warnings", "decimal_labels")


def test_whole_numbers_are_no_decimal_labels(tmp_path: Path) -> None:
    train = rows(8, ("1", "2"))
    _, report = load_task(folder(tmp_path, train, validation=train[:2], test=train[:2]))
    assert not messages(report, "warnings", "decimal_labels")


def test_a_long_text_is_a_warning_and_an_error_above_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = with_rows([{"text": "é" * 60, "label": "bad"}])
    source = folder(tmp_path, [*train, {"text": "w" * 200, "label": "good"}])
    monkeypatch.setattr(limits, "MAX_TEXT_CHARS", 100)
    monkeypatch.setattr(limits, "LONG_TEXT_CHARS", 50)
    assert faults(source) == [("text_too_long", "train", 6, "text")]
    _, report = validate(folder(tmp_path, train))
    assert [warning["row"] for warning in report["warnings"] if warning["code"] == "long_text"] == [5]


def test_messages_have_no_label_above_the_limit(tmp_path: Path) -> None:
    records = [*rows(4), *({"text": f"x {n}", "label": "b" * 2_000 + str(n)} for n in range(3))]
    _, report = validate(put(tmp_path / "all.jsonl", jsonl(records)))
    assert "label_too_long" in [fault["code"] for fault in report["faults"]]
    assert "b" * 1_001 not in str(report)


def test_label_at_the_limit_is_valid(tmp_path: Path) -> None:
    labels = ("b" * 1_000, "good")
    assert faults(folder(tmp_path, rows(4, labels), rows(4, labels, "dev"), rows(4, labels, "new"))) == []


def test_field_of_ten_megabytes_is_reported_with_its_row(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "text,label\na,bad\n" + "x" * 10_000_000 + ",good\nb,good\n")
    assert ("text_too_long", "train", 2, "text") in faults(tmp_path / "train.csv")


def test_train_rows_inside_test_are_counted_but_stay(tmp_path: Path) -> None:
    train = rows(6)
    test = [{"text": "new", "label": "bad"}, {"text": "  TEXT number\n2", "label": "good"}, train[0]]
    task, report = load_task(folder(tmp_path, train, test=test))
    assert report["overlap"] == {
        "train_validation": 0,
        "validation_rows": [],
        "train_test": 2,
        "validation_test": 0,
        "test_rows": [2, 3],
    }
    assert task.counts["test"] == 3
    assert task.repeated("test").tolist() == [False, True, True]
    (message,) = messages(report, "warnings", "overlap")
    assert "also in train or validation, ignoring case and spaces: 2 (rows" in message


def test_test_rows_inside_validation_are_counted(tmp_path: Path) -> None:
    new = [{"text": f"new text {label}", "label": label} for label in ("bad", "good")]
    _, report = load_task(folder(tmp_path, rows(6), validation=new, test=[new[0], {"text": "other", "label": "good"}]))
    assert (report["overlap"]["validation_test"], report["overlap"]["train_test"]) == (1, 0)
    assert report["overlap"]["test_rows"] == [1]
    (message,) = messages(report, "warnings", "overlap")
    assert "also in train or validation, ignoring case and spaces: 1 (row 1)." in message


def test_equal_texts_in_another_unicode_form_are_copies(tmp_path: Path) -> None:
    train = with_rows([{"text": "caf\u00e9", "label": "bad"}])
    task, report = load_task(folder(tmp_path, train, test=[{"text": "cafe\u0301", "label": "bad"}]))
    assert report["overlap"]["train_test"] == 1
    assert task.texts("test") == ["cafe\u0301"]


def test_copies_with_different_labels_are_a_warning(tmp_path: Path) -> None:
    train = with_rows([{"text": "x", "label": "bad"}, {"text": "X", "label": "good"}, {"text": "x", "label": "good"}])
    train.append(train[0])
    _, report = load_task(folder(tmp_path, train))
    duplicates = report["duplicates"]["train"]
    assert (duplicates["copies"], duplicates["conflicting"]) == (3, 1)
    rows = sorted((row["row"], row["text"], row["label"]) for row in duplicates["conflicts"])
    assert rows == [(5, "x", "bad"), (6, "X", "good"), (7, "x", "good")]
    assert [w["row"] for w in report["warnings"] if w["code"] == "conflicting_labels"] == [6]


def test_conflicting_texts_are_listed_by_their_first_row(tmp_path: Path) -> None:
    copies = [{"text": f"text {n}", "label": label} for label in ("bad", "good") for n in range(8)]
    _, report = load_task(folder(tmp_path, with_rows(copies)))
    listed = [row["text"] for row in report["duplicates"]["train"]["conflicts"]]
    assert listed == [f"text {n}" for n in range(8) for _ in range(2)]


def test_a_pair_is_checked_in_both_texts(tmp_path: Path) -> None:
    train = [{"premise": f"p{n}", "hypothesis": f"h{n}", "label": n % 2} for n in range(4)]
    bad = [{"premise": "p", "hypothesis": " ", "label": 1}, {"premise": None, "hypothesis": "h", "label": 0}]
    source = folder(tmp_path, [*train, *bad], validation=train, test=train)
    assert faults(source) == [("null_text", "train", 6, "premise"), ("blank_text", "train", 5, "hypothesis")]


def test_the_report_is_json_with_lengths_labels_and_a_preview(tmp_path: Path) -> None:
    train = with_rows([{"text": "w " * 400, "label": "bad"}])
    _, report = load_task(folder(tmp_path, train), DatasetOptions(name="mine"))
    assert jsonl([report])
    assert report["ok"]
    bins = report["lengths"].pop("bins")
    assert (bins[0], bins[-1]) == ({"from": 3, "rows": 12}, {"from": 363, "rows": 1}), "the last one is open"
    assert report["lengths"] == {
        "mean_words": pytest.approx((12 * 3 + 400) / 13, abs=0.01),
        "p50": 3.0,
        "p95": pytest.approx(161.8),
        "max": 400,
    }
    assert report["labels"] == [
        {"label": "bad", "train": 3, "validation": 2, "test": 2},
        {"label": "good", "train": 2, "validation": 2, "test": 2},
    ]
    assert report["preview"][0] == {"row": 1, "text": "text number 0", "label": "bad"}
    assert len(report["preview"]) == 5
    assert len(report["preview"][4]["text"]) == 300
