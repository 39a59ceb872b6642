"""Files of texts for predictions: what cannot be read is an error that names the file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tlm_client.prediction_files import predict_file
from tlm_core.errors import InvalidRequest
from tlm_core.wire import Prediction


def classified(path: Path) -> int:
    """Classify the rows of a file with a client that always predicts `a`."""

    def predict_many(_: str, texts: Any, pairs: Any, **__: Any) -> Any:
        assert pairs is None
        return (Prediction(label="a", probability=0.5) for _ in texts)

    client: Any = SimpleNamespace(predict_many=predict_many)
    return predict_file(client, "reviews", path, path.with_suffix(".out"), on_row=lambda _: None)


def test_rows_get_label_and_probability(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("id,text\n7,a film\n", encoding="utf-8")
    assert classified(path) == 1
    assert path.with_suffix(".out").read_text() == "id,text,prediction,probability\n7,a film,a,0.5\n"


@pytest.mark.parametrize("line", [0, 1, 2000])
def test_file_that_is_not_utf8_is_refused(tmp_path: Path, line: int) -> None:
    lines = [b"text", *(b"a text of some words %d" % number for number in range(2500))]
    lines[line] += b" caf\xe9"
    path = tmp_path / "in.csv"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InvalidRequest, match=r"in\.csv as UTF-8 CSV, in line \d+ or later"):
        classified(path)
    assert not path.with_suffix(".out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("body\nx\n", "no column 'text'.*Columns: body"),
        ("", "Columns: none"),
        ("text\na,b\n", "Line 2 of .*more or fewer"),
    ],
)
def test_file_with_other_columns_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidRequest, match=message):
        classified(path)
