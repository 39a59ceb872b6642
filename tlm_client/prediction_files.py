"""Classify the rows of a file, in any format that a dataset file may have."""

from __future__ import annotations

import csv
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain, tee
from pathlib import Path
from typing import IO

from tlm_client.client import TLMClient
from tlm_client.transfer import check_is_file, local_errors
from tlm_core.errors import InvalidRequest, NotFound
from tlm_core.tables.findings import Findings
from tlm_core.tables.records import Record, TableFile, Unread, delimiter_name, without_surrogates
from tlm_core.wire import Prediction
from tlm_core.wording import counted

Row = Mapping[str, object]
_NONE: Row = {"prediction": None, "probability": None}


def predict_file(
    client: TLMClient,
    job_id: str,
    source: Path,
    target: Path,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    min_confidence: float | None = None,
    on_row: Callable[[int], None],
    notify: Callable[[str], None] = lambda _: None,
) -> int:
    """Copy a file with additional columns `prediction` and `probability`, and return the number of rows.

    The copy is JSON Lines if the file has JSON, else CSV in UTF-8. `target` appears when the copy is complete. A blank
    text gets an empty prediction.

    text_column, pair_column: by default, the columns of the model's dataset if the file has them. Otherwise, the text
    column is the only column, or `text`. on_row: receives the number of rows so far. notify: receives the inferred
    settings of the file, the columns that the copy replaces or leaves empty, and the number of blank texts.

    Raises InvalidRequest for a missing file, a target that is not a file, an invalid row or a missing column, and what
    TLMClient.predict raises.
    """
    check_is_file(source)  # A pipe cannot be read twice.
    # A symbolic link remains a link. `Path.resolve` raises RuntimeError for a link to itself.
    target = Path(os.path.realpath(target))
    if target.exists():
        check_is_file(target)
    if not target.parent.is_dir():
        raise InvalidRequest(f"The folder {target.parent} does not exist. Create it, or write to another folder.")
    table = TableFile(source, Findings(str(source), stop_at=1, notify=notify))
    columns, records = _open(table)
    known = _dataset_columns(client, job_id)
    text = text_column or _default_text(known.get("text"), columns)
    pair_column = pair_column or (known.get("text_pair") if known.get("text_pair") in columns else None)
    _check_columns(table, columns, known, {"--text-column": text, "--pair-column": pair_column})
    needed = [text, pair_column] if pair_column else [text]
    # An iterator that nothing reads would store the whole file in memory.
    rows, texts, *pairs = tee(_rows(table, records, needed), 1 + len(needed))
    predictions = client.predict_many(
        job_id,
        (str(row[text]) for row in texts if not _is_blank(row, text)),
        (str(row[pair_column] or "") for row in pairs[0] if not _is_blank(row, text)) if pair_column else None,
        min_confidence=min_confidence,
    )
    notify_once = cache(notify)
    count = blank = 0
    with _opened(target) as output:
        write = _json_writer(output) if table.kind == "json" else _csv_writer(output, columns)
        for count, row in enumerate(rows, 1):
            for note in _lost_columns(row):
                notify_once(note)
            is_blank = _is_blank(row, text)
            write(row, _NONE if is_blank else _columns(next(predictions)))
            blank += is_blank
            on_row(count)
    if blank:
        notify(f"{counted(blank, 'blank text')} without a prediction")
    return count


def _open(table: TableFile) -> tuple[Sequence[str], Iterator[Record]]:
    """Return the columns and the records of the file. The columns of JSON are the keys of the first object."""
    opened = table.open()
    assert opened is not None, "the first data error raises InvalidDataset"
    records = opened.read(None)
    first = list(next(([record] for record in records), []))
    return opened.names or [key for _, row in first for key in row], chain(first, records)


def _dataset_columns(client: TLMClient, job_id: str) -> Mapping[str, str | None]:
    """Return the columns of the job's dataset, such as `{"text": "body", "label": "stars"}`, or {} if it is deleted."""
    try:
        return client.dataset_report(client.job(job_id).dataset_id).get("columns") or {}
    except NotFound:
        return {}


def _default_text(known: str | None, columns: Sequence[str]) -> str:
    """Return the column with the texts: `known` if the file has this column, else the only column, else `text`.

    known: text column of the model's dataset, or None. columns: columns of the file. If the file has none of these
    columns, return `known` or `text`. `_check_columns` then reports this column as missing.
    """
    if known in columns:
        return str(known)
    if len(columns) == 1:
        return columns[0]
    return "text" if "text" in columns else known or "text"


def _check_columns(
    table: TableFile, columns: Sequence[str], known: Mapping[str, str | None], needed: Mapping[str, str | None]
) -> None:
    """Raise InvalidRequest if the file lacks a column. known: the dataset's columns. needed: option → column."""
    for option, name in needed.items():
        if name is not None and name not in columns:
            read = f" Delimiter: {delimiter_name(table.delimiter)}." if table.delimiter else ""
            read += f" Encoding: {table.encoding.name}." if table.encoding else ""
            read += f" The model's dataset has the column '{name}'." if name in known.values() else ""
            listed = f"Columns: {', '.join(columns) or 'none'}.{read}"
            raise InvalidRequest(f"{table.path} has no column '{name}'. Name one with {option}. {listed}")


def _rows(table: TableFile, records: Iterator[Record], needed: Sequence[str]) -> Iterator[Row]:
    """Yield the rows. Raises InvalidRequest for text that cannot be decoded, or a needed value that is not text.

    needed: columns that each yielded row has, with None for a missing value.
    """
    for number, record in records:
        for name, value in record.items():
            if isinstance(value, str) and not value.isascii() and value != without_surrogates(value):
                problem = "has bytes that are not UTF-8, or half of a surrogate pair."
                remedy = "Save the file as UTF-8, or correct the text."
                raise InvalidRequest(f"Column '{name}' in row {number} of {table.path} {problem} {remedy}")
        row = dict.fromkeys(needed) | record
        for name in needed:
            if not isinstance(row[name], str | None):
                raise InvalidRequest(f"Column '{name}' in row {number} of {table.path} is not text. Write it as text.")
        yield row


def _is_blank(row: Row, column: str) -> bool:
    return not str(row[column] or "").strip()


@contextmanager
def _opened(target: Path) -> Iterator[IO[str]]:
    """Open a file that appears at `target` when the block ends. After an error, no file appears."""
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")  # Another program may write the same target.
    try:
        with local_errors(f"writing {target}"), open(partial, "x", encoding="utf-8", newline="") as output:
            yield output
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _lost_columns(row: Row) -> Iterator[str]:
    """Yield a note for each column whose value the copy does not contain."""
    for name, value in row.items():
        if name in _NONE:
            yield f"column '{name}' of the file is replaced in the output"
        elif isinstance(value, Unread):
            yield f"column '{name}': each {value.value} is empty in the output"


def _csv_writer(output: IO[str], columns: Sequence[str]) -> Callable[[Row, Row], None]:
    """Return a function that writes a row with its prediction. Dates, nested values and binary data become empty."""
    writer = csv.DictWriter(output, list(dict.fromkeys([*columns, *_NONE])))
    writer.writeheader()

    def write(row: Row, prediction: Row) -> None:
        values = {name: None if isinstance(value, Unread) else value for name, value in row.items()}
        writer.writerow({**values, **prediction})

    return write


def _json_writer(output: IO[str]) -> Callable[[Row, Row], None]:
    return lambda row, prediction: print(
        json.dumps(_plain(tuple({**row, **prediction}.items())), ensure_ascii=False), file=output
    )


def _plain(value: object) -> object:
    """Convert a value of the JSON reader for `json.dumps`. The reader returns an object as a tuple of pairs."""
    if isinstance(value, tuple):
        return {key: _plain(item) for key, item in value}
    return list(map(_plain, value)) if isinstance(value, list) else value


def _columns(prediction: Prediction) -> Row:
    value = prediction.label if prediction.value is None else prediction.value
    return {"prediction": value, "probability": prediction.probability}
