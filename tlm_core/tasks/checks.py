"""Faults in the values of the chosen columns."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from tlm_core.tables.findings import LISTED_PER_CODE, Findings
from tlm_core.tasks.options import Limits
from tlm_core.tasks.table import KINDS, UNREAD, RawTable, as_text

_DECIMAL = re.compile(r"-?\d*\.\d+(?:e-?\d+)?", re.IGNORECASE)
# Digits that a float holds exactly: longer numbers may be ids.
_NUMBER = re.compile(r"-?\d{1,15}|-?\d{0,8}\.\d{1,6}", re.ASCII)
_HOW = "case, blanks or the writing of a number"
LabelCounts = Mapping[str, Mapping[str, int]]


def check_texts(table: RawTable, column: str, findings: Findings, limits: Limits) -> None:
    """Faults: not_text, null_text, blank_text, bad_character, text_too_long. Warning: long_text."""
    values, kinds, split = table.columns[column].values, table.columns[column].kinds, table.split
    where = f"row {{row}} of {table.file}: '{column}'"
    for kind in sorted(kinds.keys() - {KINDS[str]}):
        message, odd = f"{where} is a {kind}, not a text; {UNREAD.get(kind, 'write it in quotes')}", kinds[kind]
        findings.fault_rows("not_text", message, odd.rows, split=split, column=column, total=odd.count)
    null, total = null_rows(table, column, pc.is_null)
    message = f"{where} is null; write a text or leave the row out"
    findings.fault_rows("null_text", message, null, split=split, column=column, total=total)
    message = f"{where} is blank; write a text or leave the row out"
    findings.fault_rows("blank_text", message, _rows(table, values, _is_blank).tolist(), split=split, column=column)
    _check_characters(table, column, findings)
    for row, length in _long_rows(table, values, limits.long_text_chars):
        said = f"row {row} of {table.file}: '{column}' has {length:,} characters"
        if length > limits.max_text_chars:
            message = f"{said}, more than {limits.max_text_chars:,}; cut it, or mend a quote left open"
            findings.fault("text_too_long", message, split=split, row=row, column=column)
        else:
            message = f"{said}; a model reads only the beginning of so long a text"
            findings.warn("long_text", message, split=split, row=row, column=column)


def check_labels(table: RawTable, column: str, findings: Findings) -> None:
    """Faults: null_label, mixed_types, not_a_label, bad_character."""
    kinds, split = table.columns[column].kinds, table.split
    where = f"row {{row}} of {table.file}: '{column}'"
    check_unread(table, column, findings)
    null, total = null_rows(table, column, is_null_or_blank)
    message = f"{where} has no label; add it or leave the row out"
    findings.fault_rows("null_label", message, null, split=split, column=column, total=total)
    known = {name: kind for name, kind in kinds.items() if name not in UNREAD}
    usual = max(known, key=lambda name: known[name].count, default="")
    for name in sorted(known.keys() - {usual}):
        message, odd = f"{where} is a {name}, elsewhere mostly a {usual}; write all alike", known[name]
        findings.fault_rows("mixed_types", message, odd.rows, split=split, column=column, total=odd.count)
    _check_characters(table, column, findings)


def check_unread(table: RawTable, column: str, findings: Findings) -> None:
    """Fault not_a_label, for labels or regression targets of kinds that are not read."""
    kinds = table.columns[column].kinds
    for name in sorted(kinds.keys() & UNREAD.keys()):
        message = f"row {{row}} of {table.file}: '{column}' is a {name}; {UNREAD[name]}"
        odd = kinds[name]
        findings.fault_rows("not_a_label", message, odd.rows, split=table.split, column=column, total=odd.count)


def null_rows(table: RawTable, column: str, predicate: Callable[[Any], Any]) -> tuple[list[int], int]:
    """Rows without a value and how many there are; values that are not read, null here too, do not count."""
    rows = _rows(table, table.columns[column].values, predicate).tolist()
    odd = [kind for name, kind in table.columns[column].kinds.items() if name in UNREAD]
    listed = {row for kind in odd for row in kind.rows}
    unread = sum(kind.count for kind in odd)
    return [row for row in rows if row not in listed] if len(listed) == unread else [], len(rows) - unread


def _check_characters(table: RawTable, column: str, findings: Findings) -> None:
    rows = _rows(table, table.columns[column].values, lambda chunk: pc.match_substring(chunk, "\x00"))
    message = f"row {{row}} of {table.file}: '{column}' holds a NUL character; remove it (is the file UTF-16?)"
    findings.fault_rows("bad_character", message, rows.tolist(), split=table.split, column=column)


def _rows(table: RawTable, values: Any, predicate: Callable[[Any], Any]) -> NDArray[np.int64]:
    """Numbers of the records for which `predicate` (of a pyarrow array) is true; null counts as false."""
    found = []
    start = 0
    for chunk in values.chunks:
        mask = pc.fill_null(predicate(chunk), False).to_numpy(zero_copy_only=False)
        found.append(table.rows[start : start + len(chunk)][mask])
        start += len(chunk)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _is_blank(chunk: Any) -> Any:
    return pc.equal(pc.utf8_trim_whitespace(chunk), "")


def is_null_or_blank(chunk: Any) -> Any:
    """Whether each string of a pyarrow array is null, empty or white space."""
    return pc.fill_null(_is_blank(chunk), True)


def _long_rows(table: RawTable, values: Any, limit: int) -> list[tuple[int, int]]:
    rows = _rows(table, values, lambda chunk: pc.greater(pc.utf8_length(chunk), limit))
    lengths = pc.utf8_length(values).to_numpy()[np.searchsorted(table.rows, rows)] if len(rows) else rows
    return [(int(row), int(length)) for row, length in zip(rows, lengths, strict=True)]


def count_labels(values: Any) -> dict[str, int]:
    """Rows of each label of a string column; null and blank ones do not count."""
    counted = pc.value_counts(values).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted if entry["values"] and entry["values"].strip()}


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Labels in the order of their indices: by value if all are whole numbers, else by code point."""
    labels = list(labels)
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def check_label_set(
    counts: LabelCounts, tables: Mapping[str, RawTable], column: str, findings: Findings, limits: Limits
) -> None:
    """Faults and warnings about the labels as a whole; counts: for each split its rows of each label.

    Faults: one_class, too_many_labels, unknown_label. Warnings: rare_label, label_variants, decimal_labels.
    """
    train, file = counts["train"], tables["train"].file
    if len(train) > limits.max_labels:
        message = (
            f"'{column}' of {file} has {len(train):,} labels, more than {limits.max_labels:,}; is it the right column?"
        )
        findings.fault("too_many_labels", message, split="train", column=column)
        return
    if len(train) == 1:
        message = f"all rows of {file} have the label '{next(iter(train))}'; a classifier needs two or more"
        findings.fault("one_class", message, split="train", column=column)
    _check_spelling(train, file, column, findings)
    for label, count in train.items():
        if count == 1:
            message = f"the label '{label}' has a single train row; a model hardly learns it: add rows or merge it"
            findings.warn("rare_label", message, split="train", column=column)
    for split in [name for name in counts if name != "train"]:
        unknown = sort_labels(counts[split].keys() - train.keys())
        for label in unknown[:LISTED_PER_CODE]:
            row = _first_row(tables[split], column, label)
            where = f"{tables[split].file} (row {row}, {counts[split][label]} in all)"
            message = f"the label '{label}' of {where} is not in train; {_nearest(label, train)}"
            findings.fault("unknown_label", message, split=split, row=row, column=column)
        findings.count_more("unknown_label", len(unknown[LISTED_PER_CODE:]))


def _first_row(table: RawTable, column: str, label: str) -> int:
    return int(table.rows[pc.index(table.columns[column].values, label).as_py()])


def _check_spelling(train: Mapping[str, int], file: str, column: str, findings: Findings) -> None:
    by_folded: dict[str, list[str]] = {}
    for label in train:
        by_folded.setdefault(_folded(label), []).append(label)
    for labels in by_folded.values():
        if len(labels) > 1:
            spelled = " and ".join(f"'{label}' ({train[label]} rows)" for label in sorted(labels))
            message = f"{spelled} differ only in {_HOW}; if they mean the same, write them alike"
            findings.warn("label_variants", message, split="train", column=column)
    if edged := sort_labels(label for label in train if label != label.strip()):
        shown = ", ".join(map(repr, edged[:5]))
        message = (
            f"the labels {shown} begin or end with blanks, which stay part of their names; take them out of {file}"
        )
        findings.warn("label_variants", message, split="train", column=column)
    if len(train) > 1 and all(_DECIMAL.fullmatch(label) for label in train):
        message = (
            f"The labels of {file} are decimal numbers and are read as names of classes. Set the metric pearson or "
            "spearman to predict the numbers (regression)."
        )
        findings.warn("decimal_labels", message, split="train", column=column)


def _folded(label: str) -> str:
    folded = " ".join(unicodedata.normalize("NFC", label).casefold().split())
    return as_text(float(folded)) if _NUMBER.fullmatch(folded) else folded


def _nearest(label: str, train: Mapping[str, int]) -> str:
    same = [known for known in train if _folded(known) == _folded(label)]
    if same:
        return f"it differs from '{same[0]}' only in {_HOW}: write them alike"
    near = difflib.get_close_matches(label, train, n=1, cutoff=0.75)
    return f"did you mean '{near[0]}'?" if near else "add train rows that have it, or leave it out"
