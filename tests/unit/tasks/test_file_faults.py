"""Unreadable files and rows are reported with the row."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.tasks.make import faults, folder, jsonl, put, rows, validate
from tlm_core.errors import InvalidRequest
from tlm_core.tables.findings import Findings
from tlm_core.tables.records import TableFile
from tlm_core.tasks import limits
from tlm_core.tasks.options import DatasetOptions


def codes(source: Path) -> list[str]:
    return [code for code, _, _, _ in faults(source)]


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.parquet", "train.tsv", "train.csv.gz"])
@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path: Path, name: str, content: bytes) -> None:
    if name.endswith("gz"):
        content = gzip.compress(content)
    expected = "wrong_type" if name.endswith("parquet") and content else "empty_file"
    assert faults(put(tmp_path / name, content)) == [(expected, "train", None, None)]


def test_a_header_only(tmp_path: Path) -> None:
    assert faults(put(tmp_path / "train.csv", "text,label\n")) == [("no_rows", "train", None, None)]
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": []}), tmp_path / "train.parquet")
    assert faults(tmp_path / "train.parquet") == [("no_rows", "train", None, None)]


def test_empty_working_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, report = validate(Path())
    assert "The folder '.' has no data file" in report["faults"][0]["message"]


def test_no_file_and_no_train(tmp_path: Path) -> None:
    assert codes(tmp_path / "absent.csv") == ["no_file"]
    put(tmp_path / "notes.txt", "a text")
    _, report = validate(tmp_path)
    assert codes(tmp_path) == ["no_file"]
    assert "has no data file; it has notes.txt. Supported types:" in report["faults"][0]["message"]
    put(tmp_path / "test.jsonl", jsonl(rows(2)))
    assert codes(tmp_path) == ["no_train"]


def test_error_about_a_folder_without_data_names_folders_with_data(tmp_path: Path) -> None:
    put(tmp_path / "README.md", "a card")
    put(tmp_path / ".git" / "train.jsonl", "")
    put(tmp_path / "data" / "train-00000.jsonl", jsonl(rows(4)))
    _, report = validate(tmp_path)
    message = report["faults"][0]["message"]
    assert message.endswith("it has README.md. Folders in it have data files: data. Use one of them.")


def test_two_files_for_one_split(tmp_path: Path) -> None:
    source = folder(tmp_path, rows(4))
    put(source / "dev.csv", "text,label\n")
    assert ("doubled_split", "validation", None, None) in faults(source)


def test_an_unknown_split(tmp_path: Path) -> None:
    source = folder(tmp_path, rows(20))
    assert [code for code, *_ in faults({"train": source / "train.jsonl", "holdout": source / "test.jsonl"})] == [
        "unknown_split"
    ]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("train.csv", b"PK\x03\x04....", "Excel"),
        ("train.csv", b'{"text": "a", "label": "b"}\n', "Name it .jsonl"),
        ("train.jsonl", b"text,label\na,b\n", "name it .csv"),
        ("train.csv", b"PAR1....", "is a Parquet file"),
        ("train.csv", bytes(range(256)), "has binary data"),
        ("train.parquet", b"text,label\n", "is not a Parquet file"),
    ],
)
def test_content_contrary_to_the_name_is_a_data_error(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    _, report = validate(put(tmp_path / name, content))
    assert [fault["code"] for fault in report["faults"]] == ["wrong_type"]
    assert part in report["faults"][0]["message"]


def test_a_cut_parquet_file(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(100)), sink)
    assert codes(put(tmp_path / "train.parquet", sink.getvalue()[:-20])) == ["unreadable_file"]


def test_a_cut_and_a_damaged_gzip_file(tmp_path: Path) -> None:
    packed = gzip.compress(jsonl(rows(500)).encode())
    assert codes(put(tmp_path / "cut.jsonl.gz", packed[: len(packed) // 2])) == ["cut_file"]
    broken = packed[:40] + bytes(200) + packed[240:]
    assert codes(put(tmp_path / "broken.jsonl.gz", broken)) == ["unreadable_file"]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.parquet"])
def test_file_above_the_unpacked_limit_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content = jsonl(rows(500)).encode()
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(500)), sink)
    packed = {"train.jsonl.gz": gzip.compress(content), "train.parquet": sink.getvalue()}.get(name, content)
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 6_000)
    assert faults(put(tmp_path / name, packed)) == [("file_too_large", "train", None, None)]


@pytest.mark.parametrize("dictionary", [False, True])
def test_repeated_parquet_values_count_in_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool
) -> None:
    texts = pa.array(["a" * 1_000] * 500)
    table = pa.table({"text": texts.dictionary_encode() if dictionary else texts, "label": ["x", "y"] * 250})
    pq.write_table(table, tmp_path / "train.parquet")
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 500_000)
    assert faults(tmp_path / "train.parquet") == [("file_too_large", "train", None, None)]
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 600_000)
    assert "file_too_large" not in codes(tmp_path / "train.parquet")


def test_reading_parquet_holds_few_rows_in_memory(tmp_path: Path) -> None:
    size, path = 100_000, tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["a" * size] * 1_000}), path)
    before = pa.total_allocated_bytes()
    file = TableFile(path, Findings("the file")).open()
    assert file is not None
    records = file.read(None)
    next(records)
    assert pa.total_allocated_bytes() - before < 200 * size


def test_bytes_in_parquet_that_are_not_utf_8(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b?", "c", "d"], "label": ["x", "y", "x", "y"]})
    offsets, data = table["text"].chunk(0).buffers()[1:]
    broken = pa.Array.from_buffers(
        pa.string(), 4, [None, offsets, pa.py_buffer(data.to_pybytes().replace(b"?", b"\xff"))]
    )
    pq.write_table(table.set_column(0, "text", broken), tmp_path / "train.parquet")
    assert faults(tmp_path / "train.parquet")[0] == ("bad_encoding", "train", 2, "text")


def test_invalid_bytes_after_a_byte_order_mark_are_a_data_error(tmp_path: Path) -> None:
    assert codes(put(tmp_path / "train.csv", b"\xff\xfet\x00e\x00x\x00t")) == ["bad_encoding"]


def test_every_malformed_json_line_is_reported(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in rows(6)]
    lines[1], lines[3], lines[4] = "{'text': 1}", '["a", "b"]', "[" * 100_000
    source = folder(tmp_path, "\n".join(lines) + "\n")
    assert faults(source) == [("malformed_row", "train", row, None) for row in (2, 4, 5)]


def test_truncated_json_line_is_a_data_error(tmp_path: Path) -> None:
    assert faults(folder(tmp_path, jsonl(rows(4)) + '{"text": "abc", "la')) == [("cut_row", "train", 5, None)]


def test_invalid_json_line_before_blanks_is_not_truncated(tmp_path: Path) -> None:
    assert faults(folder(tmp_path, jsonl(rows(4)) + '{"text": "abc"\n  ')) == [("malformed_row", "train", 5, None)]


def test_truncated_json_array_is_a_data_error(tmp_path: Path) -> None:
    content = json.dumps(rows(4), indent=1)[:-30]
    assert faults(put(tmp_path / "train.json", content)) == [("malformed_row", "train", None, None)]


@pytest.mark.parametrize(
    ("header", "delimiter", "named"),
    [
        ("text^label", None, "delimiter comma, has one column, 'text^label'"),
        ("text,label", ";", "delimiter semicolon, has one column, 'text,label'"),
        ("text,label", "^", "delimiter '^', has one column, 'text,label'"),
        ("sep=;\ntext;label", None, "delimiter semicolon, has one column, 'sep='"),
        ("# made by hand\ntext,label", None, "delimiter comma, has one column, '# made by hand'"),
    ],
)
def test_header_with_one_column_is_reported_with_its_delimiter(
    tmp_path: Path, header: str, delimiter: str | None, named: str
) -> None:
    records = "".join(f"text {n}{header[-6]}{n % 2}\n" for n in range(20))
    _, report = validate(put(tmp_path / "all.csv", f"{header}\n{records}"), DatasetOptions(delimiter=delimiter))
    assert [fault["code"] for fault in report["faults"]] == ["missing_column"]
    assert named in report["faults"][0]["message"]
    assert report["faults"][0]["message"].endswith("Set another delimiter, or remove the lines above the header.")


def test_utf_16_without_byte_order_mark_is_a_data_error(tmp_path: Path) -> None:
    file = put(tmp_path / "all.csv", "text,label\nx,y\n".encode("utf-16-le"))
    _, report = validate(file)
    assert {fault["code"] for fault in report["faults"]} == {"bad_character"}
    assert report["faults"][0]["message"].endswith("If the file is UTF-16 without a byte order mark, save it as UTF-8.")


def test_every_csv_row_of_the_wrong_width_is_reported(tmp_path: Path) -> None:
    source = folder(tmp_path, rows(4))
    (source / "train.jsonl").unlink()
    put(source / "train.csv", "text,label\na,bad\nb\nc,good\nd, e,good\nf,bad\ng\n")
    assert faults(source) == [("malformed_row", "train", row, None) for row in (2, 4, 6)]


def test_a_file_without_one_whole_row(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "text,label\na\nb\n")
    assert faults(tmp_path / "train.csv") == [("malformed_row", "train", row, None) for row in (1, 2)]


def test_truncated_csv_row_is_a_data_error(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "id,text,label\n1,a,bad\n2,b,good\n3,c")
    assert faults(tmp_path / "train.csv")[0] == ("cut_row", "train", 3, None)


def test_short_csv_row_before_blanks_is_not_truncated(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "id,text,label\n1,a,bad\n2,b,good\n3,c\n  ")
    assert faults(tmp_path / "train.csv")[0] == ("malformed_row", "train", 3, None)


def test_a_quote_that_never_closes(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", 'text,label\na,bad\n"b,good\nc,bad\nd,good\n')
    assert faults(tmp_path / "train.csv")[0] == ("cut_row", "train", 2, None)


def test_a_quote_within_quotes_that_is_not_doubled(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", 'text,label\na,bad\n"b "c" d",good\ne,good\n')
    assert faults(tmp_path / "train.csv")[0] == ("malformed_row", "train", 2, None)


def test_a_doubled_column(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "text,label,text\na,bad,c\n")
    assert faults(tmp_path / "train.csv") == [("doubled_column", "train", None, "text")]
    put(tmp_path / "train.jsonl", '{"text": "a", "label": "x", "label": "y"}\n')
    assert faults(tmp_path / "train.jsonl") == [("doubled_column", "train", 1, "label")]


def test_too_many_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "train.jsonl", jsonl({f"k{n}": 1} for n in range(30)))
    monkeypatch.setattr("tlm_core.tables.records.MAX_COLUMNS", 20)
    assert faults(tmp_path / "train.jsonl")[0][0] == "too_many_columns"


@pytest.mark.parametrize(
    "options",
    [{"metric": "f2"}, {"delimiter": ";;"}, {"split_seed": -1}, {"text_column": "a", "label_column": "a"}],
)
def test_invalid_options_are_rejected(options: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        DatasetOptions(**options)  # type: ignore[arg-type]
