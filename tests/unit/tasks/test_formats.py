"""The same rows come out of every format, encoding and dialect."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.unit.tasks.make import faults, folder, jsonl, put, rows
from tlm_core.tables.records import class_names
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.validate import load_task

ROWS = [
    {"text": 'She said "no", and left', "label": "bad"},
    {"text": "two\nlines", "label": "good"},
    {"text": "日本語 texte été", "label": "good"},
    {"text": "plain; with | signs", "label": "bad"},
]


def delimited(delimiter: str, end: str = "\r\n") -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    writer.writerow(["text", "label"])
    writer.writerows([row["text"], row["label"]] for row in ROWS)
    return out.getvalue()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


FILES: dict[str, Callable[[], str | bytes]] = {
    "train.jsonl": lambda: jsonl(ROWS),
    "train.json": lambda: json.dumps(ROWS, indent=1),
    "train.ndjson": lambda: "\n" + jsonl(ROWS).replace("\n", "\r\n\r\n"),
    "train.jsonl.gz": lambda: gzip.compress(jsonl(ROWS).encode()),
    "train.csv": lambda: delimited(","),
    "TRAIN.CSV": lambda: delimited(",", "\n"),
    "train.csv.gz": lambda: gzip.compress(delimited(",").encode()),
    "train.tsv": lambda: delimited("\t"),
    "train.tsv.gz": lambda: gzip.compress(delimited("\t").encode()),
    "train.parquet": parquet,
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_task(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, FILES[name]())
    put(tmp_path / "dev.jsonl", jsonl(rows(2)))
    put(tmp_path / "test.jsonl", jsonl(rows(2)))
    task, report = load_task(tmp_path)
    assert task.texts("train") == [row["text"] for row in ROWS]
    assert [task.labels[index] for index in task.label_ids("train")] == [row["label"] for row in ROWS]
    assert task.rows("train").tolist() == [1, 2, 3, 4]
    assert report["counts"] == {"train": 4, "validation": 2, "test": 2}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_inferred_and_reported(tmp_path: Path, delimiter: str) -> None:
    put(tmp_path / "train.csv", delimited(delimiter))
    task, report = load_task(split_files(tmp_path))
    assert task.texts("train") == [row["text"] for row in ROWS]
    expected_note = [note for note in report["notes"] if "delimiter" in note]
    assert len(expected_note) == (delimiter != ",")


def split_files(root: Path) -> Path:
    put(root / "valid.jsonl", jsonl(rows(2)))
    put(root / "test.jsonl", jsonl(rows(2)))
    return root


def test_a_given_delimiter_is_used(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "text~label\na,b;c~bad\nd~good\n")
    task, _ = load_task(split_files(tmp_path), DatasetOptions(delimiter="~"))
    assert task.texts("train") == ["a,b;c", "d"]


def test_stray_quotes_in_tab_separated_text_are_plain_characters(tmp_path: Path) -> None:
    put(tmp_path / "train.tsv", 'text\tlabel\n"twas night\tbad\nan 8" nail\tgood\nthe "end"\tgood\n')
    task, report = load_task(split_files(tmp_path))
    assert task.texts("train") == ['"twas night', 'an 8" nail', 'the "end"']
    assert any("quotes are read as characters" in note for note in report["notes"])


def test_blanks_around_column_names_are_removed_and_reported(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", " text , label\na,bad\nb,good\n")
    task, report = load_task(split_files(tmp_path))
    assert task.texts("train") == ["a", "b"]
    assert any("spaces around column names" in note for note in report["notes"])


def test_blank_lines_are_no_records(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "text,label\n\na,bad\n\n  \nb,good\n\t \n ")
    task, _ = load_task(split_files(tmp_path))
    assert task.rows("train").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("codec", "expected_note"),
    [
        ("utf-8", None),
        ("utf-8-sig", "byte order mark"),
        ("utf-16", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("cp1252", "read as cp1252"),
        ("latin-1", "read as cp1252"),
    ],
)
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_encodings_are_detected_and_reported(tmp_path: Path, name: str, codec: str, expected_note: str | None) -> None:
    text = "un été à Paris"
    content = f"text,label\n{text},bad\nb,good\n"
    if name.endswith("jsonl"):
        content = jsonl([{"text": text, "label": "bad"}, {"text": "b", "label": "good"}])
    put(tmp_path / name, content.encode(codec))
    task, report = load_task(split_files(tmp_path))
    assert task.texts("train")[0] == text
    notes = [note for note in report["notes"] if note.startswith(name) and "type" not in note]
    assert bool(notes) == (expected_note is not None)
    assert expected_note is None or expected_note in notes[0]


def test_note_on_an_inferred_encoding_shows_a_sample(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "text,label\na,bad\nle café noir,good\n".encode("cp1252"))
    _, report = load_task(split_files(tmp_path))
    assert any("line 3" in note and "café" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("cp1251", "Это хороший фильм но мне он не понравился"),
        ("cp1250", "Zażółć gęślą jaźń i to jest świetny film"),
        ("gb18030", "这是一部很好的电影我非常喜欢"),
        ("cp1252", "Die Straße ist schön und naïve façade à Paris"),
    ],
)
def test_legacy_encodings_are_inferred_from_enough_text(tmp_path: Path, codec: str, text: str) -> None:
    put(tmp_path / "train.csv", ("text,label\n" + f"{text},bad\n{text},good\n" * 5).encode(codec))
    task, report = load_task(split_files(tmp_path))
    assert task.texts("train") == [text] * 10
    assert any(f"read as {codec}" in note for note in report["notes"])


def test_zstandard_files_are_read(tmp_path: Path) -> None:
    put(tmp_path / "train.csv.zst", zstandard.compress(delimited(",").encode()))
    assert load_task(split_files(tmp_path))[0].texts("train") == [row["text"] for row in ROWS]


def test_bytes_unknown_to_cp1252_are_latin_1(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", b"text,label\n\xe9t\xe9 \x81,bad\nb,good\n")
    task, report = load_task(split_files(tmp_path))
    assert task.texts("train")[0] == "été \x81"
    assert any("latin-1" in note for note in report["notes"])


def test_one_invalid_byte_does_not_change_the_encoding_from_utf_8(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "text,label\nnaïve été,bad\n".encode() + b"a\xffb,good\nc,bad\n")
    assert faults(split_files(tmp_path)) == [("bad_encoding", "train", 2, "text")]


def test_file_truncated_within_a_character_stays_utf_8(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "text,label\na,bad\nb,goodé".encode()[:-1])
    assert ("bad_encoding", "train", 2, "label") in faults(split_files(tmp_path))


def test_labels_may_be_numbers_or_truth_values(tmp_path: Path) -> None:
    train = [{"text": f"t{n}", "label": n} for n in (10, 9, 10, 9)]
    task, _ = load_task(folder(tmp_path, train, validation=train[:1], test=train[:2]))
    assert task.labels == ("9", "10")
    train = [{"text": f"t{n}", "label": n % 2 == 0} for n in range(4)]
    task, _ = load_task(folder(tmp_path, train, validation=train[:1], test=train[:2]))
    assert task.labels == ("false", "true")
    assert task.label_ids("train").tolist() == [1, 0, 1, 0]


def test_whole_numbers_written_with_a_point_are_the_same_labels(tmp_path: Path) -> None:
    train = [{"text": "a", "label": 1.0}, {"text": "b", "label": 0.0}]
    task, _ = load_task(folder(tmp_path, train, validation=[{"text": "c", "label": 1}], test=train))
    assert task.labels == ("0", "1")


def test_parquet_types_become_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", "b", "c"], pa.large_string()),
            "label": pa.array([True, False, True]),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "train.parquet")
    put(tmp_path / "dev.csv", "text,label,kind\nd,true,x\n")
    put(tmp_path / "test.csv", "text,label,kind\nd,false,y\n")
    task, _ = load_task(tmp_path)
    assert task.labels == ("false", "true")
    task, _ = load_task(tmp_path, DatasetOptions(label_column="kind"))
    assert task.label_ids("train").tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_binary_columns_of_parquet_that_hold_utf_8_are_texts(tmp_path: Path, kind: Any) -> None:
    texts = pa.array([row["text"].encode() for row in ROWS], kind)
    pictures = pa.array([b"\xff\xd8"] * 4, kind)  # of no interest, and so no fault
    labels = pa.array([row["label"].encode() for row in ROWS], kind).cast(pa.binary()).dictionary_encode()
    pq.write_table(pa.table({"text": texts, "picture": pictures, "label": labels}), tmp_path / "train.parquet")
    task, _ = load_task(split_files(tmp_path))
    assert task.texts("train") == [row["text"] for row in ROWS]
    assert [task.labels[index] for index in task.label_ids("train")] == [row["label"] for row in ROWS]


def test_decimals_of_parquet_are_numbers(tmp_path: Path) -> None:
    numbers = [Decimal("1.50"), Decimal("-2.00"), Decimal("0.05"), Decimal("100.00")]
    pq.write_table(pa.table({"text": ["a", "b", "c", "d"], "label": numbers}), tmp_path / "train.parquet")
    for split in ("dev", "test"):
        put(tmp_path / f"{split}.csv", "text,label\nx,1.5\ny,-2\nz,100\n")
    task, _ = load_task(tmp_path, DatasetOptions(metric="accuracy"))
    assert task.labels == ("-2", "0.05", "1.5", "100")
    task, _ = load_task(tmp_path, DatasetOptions(metric="pearson"))
    assert task.targets("train").tolist() == [1.5, -2.0, 0.05, 100.0]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_floats_of_parquet_have_their_shortest_spelling(tmp_path: Path, kind: pa.DataType) -> None:
    numbers = pa.array(np.array([1.1, 2.3, 3.0, np.nan], kind.to_pandas_dtype()))
    pq.write_table(pa.table({"text": ["a", "b", "c", "d"], "label": numbers}), tmp_path / "train.parquet")
    for split in ("dev", "test"):
        put(tmp_path / f"{split}.csv", "text,label\nx,1.1\ny,2.3\n")
    assert faults(tmp_path, DatasetOptions(metric="accuracy")) == [("null_label", "train", 4, "label")]


def test_class_names_in_parquet_metadata_are_used(tmp_path: Path) -> None:
    features = {
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    table = pa.table({"text": ["a", "b", "c"], "label": [1, 0, -1]})  # -1: no label
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "train.parquet")
    assert faults(tmp_path) == [("null_label", "train", 3, "label"), *faults(tmp_path)[1:]]
    pq.write_table(table.slice(0, 2), tmp_path / "train.parquet")
    for split in ("dev", "test"):
        pq.write_table(table.slice(0, 1), tmp_path / f"{split}.parquet")
    assert load_task(tmp_path)[0].labels == ("neg", "pos")


@pytest.mark.parametrize(
    "note",
    [
        b"no JSON",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'{"info": 3}',
        b'{"info": {"features": {"label": 1}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 5}}}}',
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, null]}}}}',
    ],
)
def test_invalid_metadata_names_no_classes(note: bytes) -> None:
    assert class_names({b"huggingface": note}) == {}


def test_hostile_looking_labels_and_texts_are_data(tmp_path: Path) -> None:
    labels = ("<script>alert(1)</script>", "\x1b[31mred\x07", "'; DROP TABLE x")
    train = rows(6, labels)
    task, report = load_task(folder(tmp_path, train, validation=train[:1], test=train[:3]))
    assert set(task.labels) == set(labels)
    assert {entry["label"] for entry in report["labels"]} == set(labels)


def test_a_mapping_and_a_single_file_are_sources_too(tmp_path: Path) -> None:
    source = folder(tmp_path, rows(4))
    mapping = {"train": source / "train.jsonl", "dev": source / "validation.jsonl", "test": source / "test.jsonl"}
    assert load_task(mapping)[0].counts == {"train": 4, "validation": 4, "test": 4}
    put(tmp_path / "reviews.csv", "text,label\n" + "".join(f"t{n},{n % 2}\n" for n in range(40)))
    task, report = load_task(str(tmp_path / "reviews.csv"))
    assert task.name == "reviews"
    assert report["counts"] == {"train": 32, "validation": 4, "test": 4}


def test_files_without_a_split_in_their_name_are_ignored_and_reported(tmp_path: Path) -> None:
    source = folder(tmp_path, rows(4))
    put(source / "notes.csv", "a,b\n")
    put(source / "manifest.json", "{}")
    put(source / "README.md", "# hello")
    _, report = load_task(source)
    assert "files whose names do not indicate exactly one split are ignored: notes.csv" in report["notes"]


def test_unknown_file_type_is_inferred_from_the_content(tmp_path: Path) -> None:
    put(tmp_path / "rows.data", jsonl(rows(40)))
    task, report = load_task(tmp_path / "rows.data")
    assert task.counts["train"] == 32
    assert any("the content is read as json" in note for note in report["notes"])
