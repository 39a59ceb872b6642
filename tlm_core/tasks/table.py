"""The records of one split as columns of text, with the kinds of values in the file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tlm_core.tables.findings import LISTED_PER_CODE, Findings
from tlm_core.tables.records import (
    EMPTY,
    Record,
    Records,
    TableFile,
    Unread,
    check_names,
    delimiter_name,
    without_surrogates,
)
from tlm_core.tasks import limits

KINDS: Mapping[type, str] = {str: "text", bool: "true/false", int: "whole number", float: "decimal number"}
# Kinds whose values are null in a Column, and the remedy for each.
UNREAD: Mapping[str, str] = {
    Unread.NESTED.value: "Each row needs exactly one plain value.",
    Unread.TIME.value: "Write it as text.",
    Unread.BYTES.value: "Write it as UTF-8 text.",
}
NO_LABELS = " If it has no labels, add them, or leave this file out."  # end of a message about a split other than train
_BATCH = 2_000
_JOINED = 32
_JOINED_BYTES = 1 << 26


@dataclass
class Kind:
    """The values of one kind, such as "whole number", in a column. rows: the row numbers of the first 100 values."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, rows: Sequence[int]) -> None:
        self.count += len(rows)
        self.rows.extend(rows[: LISTED_PER_CODE - len(self.rows)])


@dataclass
class Column:
    """One column as text. chunks: the values; null for missing values and the kinds in UNREAD. kinds: name → kind."""

    chunks: list[pa.StringArray] = field(default_factory=list)
    kinds: dict[str, Kind] = field(default_factory=dict)

    @property
    def values(self) -> pa.ChunkedArray:
        """All values as one chunked pyarrow array."""
        return pa.chunked_array(self.chunks, pa.string())

    def append(self, array: pa.StringArray | pa.ChunkedArray) -> None:
        self.chunks.extend(array.chunks if isinstance(array, pa.ChunkedArray) else [array])
        if len(self.chunks) % _JOINED == 0:
            # Arrays of Python values own up to twice the memory that they need; copies do not.
            latest = self.chunks[-_JOINED:]
            if sum(chunk.nbytes for chunk in latest) <= _JOINED_BYTES:
                self.chunks[-_JOINED:] = [pa.concat_arrays(latest)]


@dataclass(frozen=True)
class RawTable:
    """The records of one split. file: the name of the file in messages.

    rows: record numbers, from 1. Headers and blank lines are not counted. columns: name → column.
    """

    split: str
    file: str
    rows: NDArray[np.int64]
    columns: Mapping[str, Column]


def as_text(value: bool | int | float | Decimal) -> str:
    """Return a value as text: true or false, whole numbers without a decimal point, other numbers with all digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _kind_of(value: object) -> str:
    if isinstance(value, Unread):
        return value.value
    if isinstance(value, Decimal):
        return KINDS[int if value.as_tuple().exponent == 0 else float]
    return KINDS.get(type(value), Unread.NESTED.value)


def read_table(path: Path, split: str, findings: Findings, *, delimiter: str | None) -> RawTable | None:
    """Return all records of one file. Add data errors to `findings`. delimiter: between CSV fields; None: inferred.

    Returns None if the file has no records, has no valid columns, or cannot be read.
    """
    before = findings.total
    file = TableFile(path, findings, split, delimiter=delimiter, max_bytes=limits.MAX_FILE_BYTES)
    records = file.open()
    if records is None or not _has_two_columns(records, file):
        return None
    table = collect(records, file)
    if table is not None and len(table.rows):
        return table
    if findings.total == before and (table is None or not table.columns):
        file.fault("empty_file", f"{file.label} {EMPTY}")
    elif findings.total == before:
        file.fault("no_rows", f"{file.label} has column names but no records. Add records.")
    return None


def _has_two_columns(records: Records, file: TableFile) -> bool:
    if file.kind != "delimited" or len(records.names) != 1:
        return True
    name, delimiter = records.names[0][:80], delimiter_name(file.delimiter or ",")
    message = (
        f"The header of {file.label}, read with the delimiter {delimiter}, has one column, '{name}'. Texts and labels "
        "need two. Set another delimiter, or remove the lines above the header."
    )
    file.fault("missing_column", message if file.split == "train" else message + NO_LABELS)
    return False


def collect(records: Records, file: TableFile) -> RawTable | None:
    """Return the records as columns of text, or None with a data error if a column name is invalid."""
    columns = {name: Column() for name in records.names}
    numbers: list[NDArray[np.int64]] = []
    length, stream = 0, iter(records.read(None))
    while batch := list(itertools.islice(stream, _BATCH)):
        known = len(columns)
        for name in dict.fromkeys(itertools.chain.from_iterable(record for _, record in batch)):
            if name not in columns:  # a new key is null in all earlier records
                columns[name] = Column([pa.nulls(length, pa.string())] if length else [])
        if len(columns) > known and not check_names(list(columns), file):
            return None
        _append(columns, batch, file, records.damaged)
        numbers.append(np.array([row for row, _ in batch], dtype=np.int64))
        length += len(batch)
    rows = np.concatenate([np.empty(0, dtype=np.int64), *numbers])
    return RawTable(file.split or "", file.label, rows, columns)


def _append(columns: Mapping[str, Column], batch: Sequence[Record], file: TableFile, damaged: bool) -> None:
    rows = [row for row, _ in batch]
    for name, column in columns.items():
        values = [record.get(name) for _, record in batch]
        if set(map(type, values)) == {str}:
            column.kinds.setdefault(KINDS[str], Kind()).add(rows)
        else:
            for row, value in zip(rows, values, strict=True):
                if value is not None:
                    column.kinds.setdefault(_kind_of(value), Kind()).add([row])
        texts = list(map(_text_or_none, values))
        try:
            column.append(pa.array(texts, pa.string()))
        except UnicodeEncodeError:
            clean = [_repaired(text, name, row, file, damaged) for row, text in zip(rows, texts, strict=True)]
            column.append(pa.array(clean, pa.string()))


def _text_or_none(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return as_text(value) if isinstance(value, bool | int | float | Decimal) else None


def _repaired(value: str | None, name: str, row: int, file: TableFile, damaged: bool) -> str | None:
    """Return the value with question marks instead of lone surrogates. Add a data error if the value has any."""
    if value is None or (clean := without_surrogates(value)) == value:
        return value
    place = f"Row {row} of {file.label}, column '{name}',"
    if damaged:
        file.fault("bad_encoding", f"{place} has bytes that are not UTF-8. Save the file as UTF-8 again.", row, name)
    else:
        message = f"{place} has half of a surrogate pair, which is not a character. Correct the text."
        file.fault("bad_character", message, row, name)
    return clean
