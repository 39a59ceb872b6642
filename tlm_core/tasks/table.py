"""A file's records as columns of text, with what is wrong in single values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tlm_core.tasks.findings import KEPT_PER_CODE, Findings
from tlm_core.tasks.options import Limits

KINDS: Mapping[type, str] = {str: "text", bool: "true/false", int: "whole number", float: "decimal number"}
NOT_A_VALUE = "list or object"
DATE = "date or time"
BYTES = "piece of binary data"
# Kinds that are not read: their values are null in a Column. With what is to be done about them.
UNREAD: Mapping[str, str] = {
    NOT_A_VALUE: "each row needs exactly one plain value",
    DATE: "write it as text",
    BYTES: "write it as UTF-8 text",
}
_JOINED = 32
_JOINED_BYTES = 1 << 26


@dataclass
class Kind:
    """How many values of one kind a column has, and the rows of the first of them."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, rows: Sequence[int]) -> None:
        self.count += len(rows)
        self.rows.extend(rows[: KEPT_PER_CODE - len(self.rows)])


@dataclass(frozen=True)
class Column:
    """values: pyarrow chunked array of strings; null where there was none. kinds: what the values were in the file."""

    values: Any
    kinds: Mapping[str, Kind]


@dataclass(frozen=True)
class RawTable:
    """The records of one split as they stand in its file.

    rows: (records,) int64, 1-based record numbers, header and blank lines excluded.
    """

    split: str
    file: str
    rows: NDArray[np.int64]
    columns: Mapping[str, Column]


def as_text(value: bool | int | float) -> str:
    """A label's spelling: true/false, whole numbers without a point."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


class TableBuilder:
    """Gathers batches of records into a RawTable; a column that appears late is null before."""

    def __init__(self, split: str, file: str, findings: Findings, *, damaged: bool = False) -> None:
        self._split, self._file, self._findings, self._damaged = split, file, findings, damaged
        self._rows: list[NDArray[np.int64]] = []
        self._length = 0
        self._chunks: dict[str, list[Any]] = {}
        self._kinds: dict[str, dict[str, Kind]] = {}

    @property
    def names(self) -> list[str]:
        return list(self._chunks)

    def declare(self, names: Iterable[str]) -> None:
        """Name columns before their first values."""
        for name in names:
            self._chunks[name] = []
            self._kinds[name] = {}

    def add_values(self, rows: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> None:
        """Add a batch of Python values (str, bool, int, float, None, others); rows: their record numbers."""
        self.add_arrays(rows, {name: self._strings(name, rows, values) for name, values in columns.items()})

    def add_arrays(self, rows: Sequence[int] | NDArray[np.int64], columns: Mapping[str, Any]) -> None:
        """Add a batch of pyarrow string arrays, whose kinds were told by `add_kind`."""
        for name in columns:
            if name not in self._chunks:
                self._chunks[name] = [pa.nulls(self._length, pa.string())] if self._length else []
        for name, chunks in self._chunks.items():
            array = columns[name] if name in columns else pa.nulls(len(rows), pa.string())
            chunks.extend(array.chunks if isinstance(array, pa.ChunkedArray) else [array])
            if len(self._rows) % _JOINED == _JOINED - 1:
                _join_last(chunks)
        self._rows.append(np.asarray(rows, dtype=np.int64))
        self._length += len(rows)

    def add_kind(self, name: str, kind: str, rows: Sequence[int]) -> None:
        """Tell that the values of column `name` in `rows` were of that kind."""
        self._kinds.setdefault(name, {}).setdefault(kind, Kind()).add(rows)

    def build(self) -> RawTable:
        rows = np.concatenate(self._rows) if self._rows else np.empty(0, dtype=np.int64)
        columns = {
            name: Column(pa.chunked_array(chunks, pa.string()), self._kinds.get(name, {}))
            for name, chunks in self._chunks.items()
        }
        return RawTable(self._split, self._file, rows, columns)

    def _strings(self, name: str, rows: Sequence[int], values: Sequence[Any]) -> Any:
        types = set(map(type, values))
        for found in types - {type(None)}:
            kind = KINDS.get(found, NOT_A_VALUE)
            of_kind = rows
            if len(types) > 1:
                of_kind = [row for row, value in zip(rows, values, strict=True) if type(value) is found]
            self.add_kind(name, kind, of_kind)
        if types - {str, type(None)}:
            values = [value if type(value) is str or value is None else _scalar(value) for value in values]
        try:
            return pa.array(values, pa.string())
        except UnicodeEncodeError:
            return pa.array([self._encodable(name, *pair) for pair in zip(rows, values, strict=True)], pa.string())

    def _encodable(self, name: str, row: int, value: str | None) -> str | None:
        """The value with lone surrogates replaced, and a fault for it."""
        if value is None:
            return None
        clean = _clean(value)
        if clean != value and self._damaged:
            message = (
                f"row {row} of {self._file}: '{name}' holds bytes that are not UTF-8, though the file is; save it anew"
            )
            self._findings.fault("bad_encoding", message, split=self._split, row=row, column=name)
        elif clean != value:
            message = (
                f"row {row} of {self._file}: '{name}' holds half of a surrogate pair, which is no character; repair it"
            )
            self._findings.fault("bad_character", message, split=self._split, row=row, column=name)
        return clean


def _join_last(chunks: list[Any]) -> None:
    """Join the latest chunks: made of Python values they own up to twice the memory they need."""
    latest = chunks[-_JOINED:]
    if sum(chunk.nbytes for chunk in latest) <= _JOINED_BYTES:
        chunks[-_JOINED:] = [pa.concat_arrays(latest)]


def _scalar(value: Any) -> str | None:
    return as_text(value) if type(value) in KINDS else None


def check_names(names: Sequence[str], file: str, split: str, findings: Findings, limits: Limits) -> bool:
    """Whether column names can be used; a fault is added for each that cannot. Blank names do not count.

    Faults: doubled_column, bad_character, too_many_columns.
    """
    before = findings.total
    for name, count in Counter(names).items():
        if count > 1 and name:
            message = f"{file} has {count} columns named '{name}'; rename or remove all but one"
            findings.fault("doubled_column", message, split=split, column=name)
        if "\x00" in name or name != _clean(name):
            shown = _clean(name).replace("\x00", "?")
            message = (
                f"the column name '{shown}' of {file} holds NUL or broken characters; rename it, or save the file as "
                "UTF-8 if it is UTF-16 without its mark"
            )
            findings.fault("bad_character", message, split=split, column=shown)
    if len(names) > limits.max_columns:
        message = f"{file} has more than {limits.max_columns} columns; keep the few that are needed"
        findings.fault("too_many_columns", message, split=split)
    return findings.total == before


def _clean(text: str) -> str:
    """The text with lone surrogates replaced by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
