"""Classify the rows of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import tee
from pathlib import Path

from tlm_client.client import TLMClient
from tlm_core.artifacts import storage_errors
from tlm_core.errors import InvalidRequest, NotFound
from tlm_core.wire import Prediction

Row = Mapping[str, str]
_LONGEST_FIELD = 1 << 24


def predict_file(
    client: TLMClient,
    model: str,
    source: Path,
    target: Path,
    *,
    text_column: str = "text",
    pair_column: str | None = None,
    min_confidence: float | None = None,
    on_row: Callable[[int], None],
) -> int:
    """Copy a CSV file with additional columns `prediction` and `probability`, and return the number of rows.

    The target appears when it is complete. on_row: receives the number of rows so far. Raises NotFound for a missing
    file, InvalidRequest for an invalid row or a missing column, and what TLMClient.predict raises.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    partial = target.with_name(f"{target.name}.part")
    if not source.exists():
        raise NotFound(f"The file {source} does not exist. Check the path.")
    count = 0
    with (
        storage_errors(f"classifying {source}"),
        open(source, encoding="utf-8-sig", newline="") as handle,
        open(partial, "w", encoding="utf-8", newline="") as output,
    ):
        reader = csv.DictReader(handle)
        with _reading(source, reader):
            columns = list(reader.fieldnames or ())
        _check_columns(source, columns, {"--text-column": text_column, "--pair-column": pair_column})
        rows, texts, pairs = tee(_rows(source, reader), 3)
        predictions = client.predict_many(
            model,
            (row[text_column] for row in texts),
            (row[pair_column] for row in pairs) if pair_column else None,
            min_confidence=min_confidence,
        )
        writer = csv.DictWriter(output, [*columns, "prediction", "probability"])
        writer.writeheader()
        for count, (row, prediction) in enumerate(zip(rows, predictions, strict=True), 1):
            writer.writerow({**row, **_columns(prediction)})
            on_row(count)
    partial.replace(target)
    return count


def _check_columns(source: Path, columns: Sequence[str], needed: Mapping[str, str | None]) -> None:
    """Raise InvalidRequest if the file lacks a column. needed: option → column."""
    for option, name in needed.items():
        if name is not None and name not in columns:
            listed = ", ".join(columns) or "none"
            raise InvalidRequest(f"{source} has no column '{name}'. Name one with {option}. Columns: {listed}.")


def _rows(source: Path, reader: csv.DictReader[str]) -> Iterator[Row]:
    """Yield the rows. Raises InvalidRequest for a row that does not fit the header, or is not CSV in UTF-8."""
    with _reading(source, reader):
        for row in reader:
            if None in row or None in row.values():
                raise InvalidRequest(f"Line {reader.line_num} of {source} has more or fewer fields than the header.")
            yield row


@contextmanager
def _reading(source: Path, reader: csv.DictReader[str]) -> Iterator[None]:
    """Translate errors of reading to InvalidRequest. Python decodes ahead, so a damaged line may come later."""
    try:
        yield
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"Cannot read {source} as UTF-8 CSV, in line {reader.line_num + 1} or later: {error}."
        ) from error


def _columns(prediction: Prediction) -> dict[str, object]:
    if prediction.value is not None:
        return {"prediction": prediction.value}
    return {"prediction": prediction.label, "probability": prediction.probability}
