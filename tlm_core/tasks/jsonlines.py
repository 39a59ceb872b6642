"""Records of JSON Lines files, and of JSON files that hold one array of objects."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlm_core.tasks.encoding import Encoding, ends_with_newline, open_text
from tlm_core.tasks.findings import Findings
from tlm_core.tasks.options import Limits
from tlm_core.tasks.table import RawTable, TableBuilder, check_names

_BATCH = 2_000
# A JSON object is kept as a tuple of its (key, value) pairs, so that a key that stands twice is seen.
_DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=lambda _name: None)


def read_json(path: Path, split: str, encoding: Encoding, findings: Findings, limits: Limits) -> RawTable | None:
    """All records; None if there is nothing to read. NaN counts as null.

    Faults added: empty_file, malformed_row, cut_row, doubled_column, too_many_columns.
    """
    builder = TableBuilder(split, path.name, findings, damaged=encoding.damaged)
    read = _array if _is_array(path, encoding) else _lines
    records = _records(read(path, encoding, split, findings), path.name, split, findings)
    names: dict[str, None] = {}
    faults_before = findings.total
    while batch := list(itertools.islice(records, _BATCH)):
        known = len(names)
        for _, record in batch:
            names.update(dict.fromkeys(record))
        if len(names) > known and not check_names(list(names), path.name, split, findings, limits):
            return None
        columns = {name: [record.get(name) for _, record in batch] for name in names}
        builder.add_values([row for row, _ in batch], columns)
    if names:
        return builder.build()
    if findings.total == faults_before:
        findings.fault("empty_file", f"{path.name} is empty; it needs one JSON object a line", split=split)
    return None


def _is_array(path: Path, encoding: Encoding) -> bool:
    """Whether the file opens an array of objects; a line such as ["a", "b"] is a wrong record instead."""
    with open_text(path, encoding, newline="\n") as handle:
        first = next((line.strip() for line in handle if line.strip()), "")
    return first in ("[", "[]") or re.match(r"\[\s*\{", first) is not None


def _lines(path: Path, encoding: Encoding, split: str, findings: Findings) -> Iterator[tuple[int, Any]]:
    """Numbered values of the lines; a fault is added for each that is not JSON."""
    row = 0
    pending: tuple[int, str] | None = None  # the latest line that is not JSON: row, reason
    with open_text(path, encoding, newline="\n") as handle:
        for line in handle:
            text = line.strip()
            if not text:
                continue
            row += 1
            if pending is not None:
                _not_json(*pending, path.name, split, findings)
                pending = None
            try:
                yield row, _DECODER.decode(text)
            except RecursionError:
                pending = (row, "it is nested too deep")
            except ValueError as error:
                pending = (row, str(error))
    if pending is not None and not ends_with_newline(path, encoding):
        message = f"{path.name} ends in the middle of row {pending[0]} ({pending[1]}); upload it again"
        findings.fault("cut_row", message, split=split, row=pending[0])
    elif pending is not None:
        _not_json(*pending, path.name, split, findings)


def _not_json(row: int, reason: str, file: str, split: str, findings: Findings) -> None:
    message = f"row {row} of {file} is not a JSON object on one line: {reason}"
    findings.fault("malformed_row", message, split=split, row=row)


def _array(path: Path, encoding: Encoding, split: str, findings: Findings) -> Iterator[tuple[int, Any]]:
    with open_text(path, encoding, newline="\n") as handle:
        text = handle.read()
    try:
        values = _DECODER.decode(text)
    except RecursionError:
        findings.fault("malformed_row", f"{path.name} is nested too deep; write one flat object a line", split=split)
        return
    except ValueError as error:
        message = f"{path.name} begins as a JSON array but cannot be read ({error}); if it was cut, upload it again"
        findings.fault("malformed_row", message, split=split)
        return
    yield from enumerate(values, start=1)


def _records(
    values: Iterator[tuple[int, Any]], file: str, split: str, findings: Findings
) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, value in values:
        if type(value) is not tuple:
            message = f'row {row} of {file} is not a JSON object; write {{"text": ..., "label": ...}}'
            findings.fault("malformed_row", message, split=split, row=row)
            continue
        record = dict(value)
        if len(record) < len(value):
            keys = [key for key, _ in value]
            key = next(key for key in keys if keys.count(key) > 1)
            message = f"row {row} of {file} has the key '{key}' more than once; keep one"
            findings.fault("doubled_column", message, split=split, row=row, column=key)
            continue
        yield row, record
