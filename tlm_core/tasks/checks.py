"""Data errors and warnings in the values of the chosen columns."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tlm_core.tables.findings import LISTED_PER_CODE, Findings
from tlm_core.tasks import limits
from tlm_core.tasks.table import KINDS, UNREAD, RawTable, as_text
from tlm_core.wording import counted, suggestion

# Numbers whose digits a float holds exactly. Longer numbers may be ids.
_NUMBER = re.compile(r"-?\d{1,15}|-?\d{0,8}\.\d{1,6}", re.ASCII)
_NEARLY_ALL = 0.9
_SPELLING = "case, spaces or number format"
LabelCounts = Mapping[str, Mapping[str, int]]
Predicate = Callable[[pa.StringArray], pa.BooleanArray]


def check_texts(table: RawTable, column: str, findings: Findings) -> None:
    """Report invalid texts: not_text, null_text, blank_text, bad_character, text_too_long. Warning: long_text."""
    values, kinds, split = table.columns[column].values, table.columns[column].kinds, table.split
    place = place_of(table, column)
    for name in sorted(kinds.keys() - {KINDS[str]}):
        message, kind = f"{place} is a {name}, not a text. {UNREAD.get(name, 'Write it as a string.')}", kinds[name]
        findings.fault_rows("not_text", message, kind.rows, split=split, column=column, total=kind.count)
    null, total = null_rows(table, column, pc.is_null)
    message = f"{place} is null. Add a text or remove the row."
    findings.fault_rows("null_text", message, null, split=split, column=column, total=total)
    message = f"{place} is blank. Add a text or remove the row."
    findings.fault_rows("blank_text", message, _rows(table, values, _is_blank).tolist(), split=split, column=column)
    _check_characters(table, column, findings)
    for row, length in _long_rows(table, values, limits.LONG_TEXT_CHARS):
        length_message = place.replace("{row}", str(row)) + f" has {length:,} characters"
        if length > limits.MAX_TEXT_CHARS:
            message = f"{length_message}; the limit is {limits.MAX_TEXT_CHARS:,}. Cut it, or close an open quote."
            findings.fault("text_too_long", message, split=split, row=row, column=column)
        else:
            advice = "An encoder reads at most model.windows windows of it. Split the text if its end matters."
            message = f"{length_message}. {advice}"
            findings.warn("long_text", message, split=split, row=row, column=column)


def check_labels(table: RawTable, column: str, findings: Findings) -> None:
    """Report invalid labels of a column.

    Data errors: null_label, mixed_types, not_a_label, label_too_long, bad_character.
    """
    kinds, split, place = table.columns[column].kinds, table.split, place_of(table, column)
    check_unread(table, column, findings)
    null, total = null_rows(table, column, is_null_or_blank)
    message = f"{place} has no label. Add one or remove the row."
    findings.fault_rows("null_label", message, null, split=split, column=column, total=total)
    known = {name: kind for name, kind in kinds.items() if name not in UNREAD}
    usual = max(known, key=lambda name: known[name].count, default="")
    for name in sorted(known.keys() - {usual}):
        message, kind = f"{place} is a {name}; most labels are a {usual}. Use one type.", known[name]
        findings.fault_rows("mixed_types", message, kind.rows, split=split, column=column, total=kind.count)
    long = _rows(table, table.columns[column].values, lambda chunk: _is_longer(chunk, limits.MAX_LABEL_CHARS))
    message = f"{place} is a label of more than {limits.MAX_LABEL_CHARS:,} characters. Shorten it, or set label_column."
    findings.fault_rows("label_too_long", message, long.tolist(), split=split, column=column)
    _check_characters(table, column, findings)


def check_unread(table: RawTable, column: str, findings: Findings) -> None:
    """Report labels or regression targets that are lists, objects, dates, times or bytes. Data error: not_a_label."""
    for name, kind in sorted(table.columns[column].kinds.items()):
        if name in UNREAD:
            message = f"{place_of(table, column)} is a {name}. {UNREAD[name]}"
            findings.fault_rows("not_a_label", message, kind.rows, split=table.split, column=column, total=kind.count)


def place_of(table: RawTable, column: str) -> str:
    """The beginning of a message about one value; `{row}` stands for its row."""
    return f"Row {{row}} of {table.file}, column '{column}',"


def null_rows(table: RawTable, column: str, predicate: Predicate) -> tuple[list[int], int]:
    """Return the numbers of the rows without a value, and their count. Both omit values of the kinds in UNREAD.

    predicate: true for a value that counts as missing. The table stores values of these kinds as null, and records
    only the first of their row numbers. If some are not recorded, the list is empty, because it cannot omit those rows.
    """
    rows = _rows(table, table.columns[column].values, predicate).tolist()
    kinds = [kind for name, kind in table.columns[column].kinds.items() if name in UNREAD]
    listed = {row for kind in kinds for row in kind.rows}
    unread = sum(kind.count for kind in kinds)
    return [row for row in rows if row not in listed] if len(listed) == unread else [], len(rows) - unread


def _check_characters(table: RawTable, column: str, findings: Findings) -> None:
    rows = _rows(table, table.columns[column].values, lambda chunk: pc.match_substring(chunk, "\x00"))
    message = f"{place_of(table, column)} has a NUL character. Remove it; if the file is UTF-16, save it as UTF-8."
    findings.fault_rows("bad_character", message, rows.tolist(), split=table.split, column=column)


def _rows(table: RawTable, values: pa.ChunkedArray, predicate: Predicate) -> NDArray[np.int64]:
    """Row numbers of the values for which `predicate` (of a pyarrow array) is true; null counts as false."""
    rows = []
    start = 0
    for chunk in values.chunks:
        mask = pc.fill_null(predicate(chunk), False).to_numpy(zero_copy_only=False)
        rows.append(table.rows[start : start + len(chunk)][mask])
        start += len(chunk)
    return np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)


def _is_blank(chunk: pa.StringArray) -> pa.BooleanArray:
    return pc.equal(pc.utf8_trim_whitespace(chunk), "")


def is_null_or_blank(chunk: pa.StringArray) -> pa.BooleanArray:
    """Whether each string of a pyarrow array is null, empty or white space."""
    return pc.fill_null(_is_blank(chunk), True)


def _is_longer(chunk: pa.StringArray, limit: int) -> pa.BooleanArray:
    return pc.greater(pc.utf8_length(chunk), limit)


def _long_rows(table: RawTable, values: pa.ChunkedArray, limit: int) -> list[tuple[int, int]]:
    rows = _rows(table, values, lambda chunk: _is_longer(chunk, limit))
    lengths = pc.utf8_length(values).to_numpy()[np.searchsorted(table.rows, rows)] if len(rows) else rows
    return [(int(row), int(length)) for row, length in zip(rows, lengths, strict=True)]


def count_labels(values: pa.ChunkedArray) -> dict[str, int]:
    """Return the number of rows of each label of a string column, without null, blank and too long labels."""
    counts = {entry["values"] or "": entry["counts"] for entry in pc.value_counts(values).to_pylist()}
    return {label: count for label, count in counts.items() if label.strip() and len(label) <= limits.MAX_LABEL_CHARS}


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return labels in the order of their indices: by value if all are whole numbers, else by code point."""
    labels = list(labels)
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def is_decimal(text: str) -> bool:
    """Whether a text is a finite number, such as 2, 2.5 or 1e-3."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def advise_numbers(labels: Collection[str]) -> str:
    """Return advice to predict numbers if nearly all of many labels are numbers, else ""."""
    if len(labels) <= limits.MAX_DECIMALS:
        return ""
    numbers = sum(is_decimal(label.replace(",", ".")) for label in labels)
    return " To predict numbers, set the metric pearson." if numbers >= _NEARLY_ALL * len(labels) else ""


def rare_labels(train: Mapping[str, int], advice: str) -> list[str]:
    """Return the beginning of a message about each label with one row, or of one message for all if there is `advice`.

    advice: from `advise_numbers`.
    """
    rare = [label for label, count in train.items() if count == 1]
    if len(rare) > 1 and advice:
        return [f"{len(rare):,} labels, such as {', '.join(map(repr, rare[:5]))}, have one row each"]
    return [f"The label '{label}' has one row" for label in rare]


def check_label_set(counts: LabelCounts, tables: Mapping[str, RawTable], column: str, findings: Findings) -> None:
    """Check the set of labels. counts: split → label → rows.

    Data errors: one_class, too_many_labels, unknown_label. Warnings: rare_label, label_variants, decimal_labels.
    """
    train, file = counts["train"], tables["train"].file
    advice = advise_numbers(train)
    if len(train) > limits.MAX_LABELS:
        number = f"{len(train):,} labels; the limit is {limits.MAX_LABELS:,}"
        message = f"Column '{column}' of {file} has {number}. Set another label_column, or merge labels.{advice}"
        findings.fault("too_many_labels", message, split="train", column=column)
        return
    if len(train) == 1:
        message = f"All rows of {file} have the label '{next(iter(train))}'. Add rows with other labels."
        findings.fault("one_class", message, split="train", column=column)
    _check_spelling(train, file, column, findings)
    for rare in rare_labels(train, advice):
        message = f"{rare} in {file}, too few to learn. Add rows, or merge labels.{advice}"
        findings.warn("rare_label", message, split="train", column=column)
    for split in [name for name in counts if name != "train"]:
        unknown = sort_labels(counts[split].keys() - train.keys())
        for label in unknown[:LISTED_PER_CODE]:
            row = _first_row(tables[split], column, label)
            place = f"Row {row} of {tables[split].file}, column '{column}',"
            copies = counted(counts[split][label], "row")
            message = f"{place} has the label '{label}' (in {copies}), which is not in train. {_nearest(label, train)}"
            message += advice if label == unknown[0] else ""
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
            spelled = " and ".join(f"'{label}' ({counted(train[label], 'row')})" for label in sorted(labels))
            message = f"The labels {spelled} of {file} differ only in {_SPELLING}. Use one spelling for one label."
            findings.warn("label_variants", message, split="train", column=column)
    if edged := sort_labels(label for label in train if label != label.strip()):
        shown = ", ".join(map(repr, edged[:5]))
        message = f"The labels {shown} of {file} begin or end with spaces, which belong to the names. Remove them."
        findings.warn("label_variants", message, split="train", column=column)
    numbers = [float(label) for label in train if is_decimal(label)]
    if 1 < len(train) == len(numbers) and not all(map(float.is_integer, numbers)):
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
        return f"It differs from '{same[0]}' only in {_SPELLING}: use one spelling."
    return suggestion(label, train, "Add train rows with this label, or remove these rows.", cutoff=0.75)
