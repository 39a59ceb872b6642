"""Files of texts for predictions: what cannot be read is an error that names the file."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlm_client.prediction_files import predict_file
from tlm_core.errors import InvalidRequest, NotFound, StorageUnavailable, Unavailable
from tlm_core.tables.records import TableFile
from tlm_core.tasks.validate import load_task
from tlm_core.wire import Prediction

NOTES: list[str] = []


def classified(
    path: Path,
    *,
    columns: Any = None,
    fails: bool = False,
    value: float | None = None,
    on_row: Callable[[int], None] = lambda _: None,
    **options: Any,
) -> int:
    """Classify the rows of a file with a client that always predicts `a`, or for text pairs the second text.

    columns: of the model's dataset; by default the dataset is unknown. fails: after a row, the gateway does not answer.
    value: the prediction for each text, as by a regression model.
    """

    def predict_many(_: str, texts: Any, pairs: Any, **__: Any) -> Any:
        for _, pair in zip(texts, pairs or repeat("a")):  # noqa: B905
            yield Prediction(label=pair, probability=0.5) if value is None else Prediction(label="score", value=value)
            if fails:
                raise Unavailable("The gateway does not answer.")

    def job(_: str) -> Any:
        if columns is None:
            raise NotFound("No job.")
        return SimpleNamespace(dataset_id="ds_1")

    client: Any = SimpleNamespace(
        predict_many=predict_many,
        job=job,
        dataset_report=lambda _: {"columns": columns},
    )
    NOTES.clear()
    target = path.with_suffix(".out")
    return predict_file(client, "job_1", path, target, on_row=on_row, notify=NOTES.append, **options)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path.with_suffix(".out"), encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_rows_get_label_and_probability(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("id,text\n7,a film\n", encoding="utf-8")
    assert classified(path) == 1
    assert path.with_suffix(".out").read_text() == "id,text,prediction,probability\n7,a film,a,0.5\n"


def test_programs_that_write_the_same_file_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text\na film\na book\n", encoding="utf-8")

    def classify_again(row: int) -> None:
        if row == 1:
            classified(path)

    assert classified(path, on_row=classify_again) == 2
    assert [row["text"] for row in rows_of(path)] == ["a film", "a book"]
    assert sorted(tmp_path.iterdir()) == [path, path.with_suffix(".out")]


def test_interrupted_prediction_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text\na film\n", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        classified(path, on_row=Mock(side_effect=KeyboardInterrupt))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("packed", [False, True])
def test_file_is_read_like_a_dataset(tmp_path: Path, delimiter: str, encoding: str, packed: bool) -> None:
    content = delimiter.join(("id", "text")) + "\n" + delimiter.join(("7", "ein schöner Film über Bären")) + "\n"
    path = tmp_path / ("in.csv.gz" if packed else "in.csv")
    path.write_bytes(gzip.compress(content.encode(encoding)) if packed else content.encode(encoding))
    assert classified(path) == 1
    expected = {"id": "7", "text": "ein schöner Film über Bären", "prediction": "a", "probability": "0.5"}
    assert rows_of(path) == [expected]
    notes = " ".join(NOTES)
    assert ("delimiter" in notes, "cp1252" in notes) == (delimiter != ",", encoding == "cp1252")


def test_json_lines_keep_their_values_and_get_predictions(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rows = [{"text": "a film", "meta": {"tags": [1, {"x": None}]}}, {"id": 8, "text": "über"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert classified(path) == 2
    written = [json.loads(line) for line in path.with_suffix(".out").read_text(encoding="utf-8").splitlines()]
    assert written == [{**row, "prediction": "a", "probability": 0.5} for row in rows]


def test_parquet_becomes_csv(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["a film", None], "tags": [["x"], []]}), path)  # type: ignore[no-untyped-call]
    assert classified(path) == 2
    assert [(row["text"], row["tags"], row["prediction"]) for row in rows_of(path)] == [("a film", "", "a"), ("",) * 3]


def test_columns_that_become_empty_are_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    day, binary = pa.array([0, 1], pa.date32()), pa.array([b"\xff", b"\xff"])
    columns = {"text": ["a", "b"], "tags": [["x"], ["y"]], "day": day, "raw": binary}
    pq.write_table(pa.table(columns), path)  # type: ignore[no-untyped-call]
    assert classified(path) == 2
    assert sorted(NOTES) == [
        "column 'day': each date or time is empty in the output",
        "column 'raw': each piece of binary data is empty in the output",
        "column 'tags': each list or object is empty in the output",
    ]


@pytest.mark.parametrize(("name", "content"), [
    ("in.csv", "text,prediction\na film,old\na book,old\n"),
    ("in.jsonl", '{"text": "a film"}\n' + 2 * '{"text": "a book", "prediction": "old"}\n'),
])  # fmt: skip
def test_replaced_columns_are_reported(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert classified(path) == content.count("a ")
    assert NOTES == ["column 'prediction' of the file is replaced in the output"]
    assert "old" not in path.with_suffix(".out").read_text()


@pytest.mark.parametrize(("name", "content"), [
    ("in.csv", "text,probability\na film,old\n"), ("in.jsonl", '{"text": "a film", "probability": "old"}\n'),
])  # fmt: skip
def test_values_of_regression_have_no_probability(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert classified(path, value=1.5) == 1
    written = path.with_suffix(".out").read_text()
    assert "1.5" in written and "old" not in written


def test_text_column_is_that_of_the_dataset_else_the_only_column(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("Nachricht;Klasse\nhallo;\n", encoding="utf-8")
    train = tmp_path / "train.csv"
    train.write_text(
        "".join(["Nachricht;Klasse\n", *(f"hallo {n} Welt;{n % 2}\n" for n in range(40))]), encoding="utf-8"
    )
    columns = load_task({"train": train})[1]["columns"]
    assert columns == {"text": "Nachricht", "text_pair": None, "label": "Klasse"}
    assert classified(path, columns=columns) == 1
    with pytest.raises(InvalidRequest, match=r"no column 'text'.*Klasse. Delimiter: semicolon. Encoding: utf-8."):
        classified(path)
    path.write_text("body\nhello\n", encoding="utf-8")
    assert classified(path, columns=columns) == classified(path) == 1


def test_missing_column_of_the_dataset_is_named_with_the_columns_of_the_file(tmp_path: Path) -> None:
    path, columns = tmp_path / "in.csv", {"text": "question", "text_pair": None, "label": "label"}
    path.write_text("id,body\n1,x\n", encoding="utf-8")
    message = r"no column 'question'\. Name one with --text-column. Columns: id, body\."
    with pytest.raises(InvalidRequest, match=message + ".* The model's dataset has the column 'question'"):
        classified(path, columns=columns)
    with pytest.raises(InvalidRequest, match=r"no column 'message'\.(?!.*The model's dataset)"):
        classified(path, columns=columns, text_column="message")
    path.write_text("id,text\n1,x\n", encoding="utf-8")
    assert classified(path, columns=columns) == 1


def test_pair_column_is_that_of_the_dataset_if_the_file_has_it(tmp_path: Path) -> None:
    path, columns = tmp_path / "in.csv", {"text": "premise", "text_pair": "hypothesis", "label": "gold"}
    path.write_text("premise,hypothesis\nit rains,it is wet\n", encoding="utf-8")
    classified(path, columns=columns)
    assert rows_of(path)[0]["prediction"] == "it is wet"
    path.write_text("premise,second\nit rains,it pours\n", encoding="utf-8")
    classified(path, columns=columns, pair_column="second")
    assert rows_of(path)[0]["prediction"] == "it pours"
    classified(path, columns=columns)
    assert rows_of(path)[0]["prediction"] == "a", "The gateway says that the model needs text pairs."


def test_blank_text_gets_an_empty_prediction(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("id,text\n1,a film\n2, \n3,\n4,a book\n", encoding="utf-8")
    assert classified(path) == 4
    assert [row["prediction"] for row in rows_of(path)] == ["a", "", "", "a"]
    assert NOTES == ["2 blank texts without a prediction"]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("id,text\n" + f"7,{'word ' * 400}\n" * 3000, encoding="utf-8")
    tracemalloc.start()
    try:
        assert classified(path) == 3000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 2
    finally:
        tracemalloc.stop()


def test_damaged_text_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes("text\nüber\nBären\n".encode() + b"caf\xe9\n")
    with pytest.raises(InvalidRequest, match=r"Column 'text' in row 3 of .*in\.csv has bytes that are not UTF-8"):
        classified(path)
    assert [file.name for file in tmp_path.iterdir()] == ["in.csv"]


def test_failed_run_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text\na\nb\n", encoding="utf-8")
    with pytest.raises(Unavailable):
        classified(path, fails=True)
    assert [file.name for file in tmp_path.iterdir()] == ["in.csv"]


def test_error_while_reading_is_not_an_error_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*_: Any) -> Any:
        yield 1, {"text": "a"}
        yield 2, {"text": "b"}
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "in.csv"
    path.write_text("text\na\nb\n", encoding="utf-8")
    monkeypatch.setattr(TableFile, "_rows", rows)
    with pytest.raises(StorageUnavailable, match=r"Cannot read .*in\.csv"):
        classified(path)


def test_symbolic_link_remains_and_its_target_is_replaced(tmp_path: Path) -> None:
    path, target = tmp_path / "in.csv", tmp_path / "target.csv"
    path.write_text("text\na film\n", encoding="utf-8")
    target.write_text("old", encoding="utf-8")
    path.with_suffix(".out").symlink_to(target)
    classified(path)
    assert path.with_suffix(".out").is_symlink() and target.read_text() == "text,prediction,probability\na film,a,0.5\n"


def test_symbolic_link_to_itself_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text\na film\n", encoding="utf-8")
    path.with_suffix(".out").symlink_to(path.with_suffix(".out"))
    assert classified(path) == 1
    assert rows_of(path)[0]["prediction"] == "a"


@pytest.mark.parametrize("create", [os.mkfifo, os.mkdir])
def test_folder_or_pipe_is_not_replaced(tmp_path: Path, create: Callable[[Path], None]) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text\na film\n", encoding="utf-8")
    create(path.with_suffix(".out"))
    with pytest.raises(InvalidRequest, match=r"in\.out is a folder, a pipe or a device. Name a file"):
        classified(path, fails=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.csv", "in.out"]


def test_missing_file_and_folders_are_named(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "in.csv", "does not exist"), (tmp_path, "is a folder, a pipe or a device")):
        with pytest.raises(InvalidRequest, match=message):
            classified(path)
    path = tmp_path / "in.csv"
    path.write_text("text\na\n", encoding="utf-8")
    with pytest.raises(InvalidRequest, match=r"The folder .*none does not exist. Create it"):
        predict_file(SimpleNamespace(), "m", path, tmp_path / "none" / "out.csv", on_row=lambda _: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,body\n1,x\n", "no column 'text'.*Columns: id, body"),
        ("", "in.csv is empty. Add column names and records"),
        ("text\na,b\n", "Row 1 of .* has 2 fields, but the header has 1"),
    ],
)
def test_file_with_other_columns_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidRequest, match=message):
        classified(path)
