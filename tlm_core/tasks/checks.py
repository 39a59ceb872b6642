"""Checks of the texts and labels in the chosen columns. They report data errors and warnings."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from tlm_core.tables.findings import LISTED_PER_CODE, Findings
from tlm_core.tasks import limits
from tlm_core.tasks.table import KINDS, UNREAD, RawTable, as_text
from tlm_core.wording import counted, suggestion

# Numbers whose digits a float holds exactly. Longer numbers may be ids.
_NUMBER = re.compile(r"-?\d{1,15}|-?\d{0,8}\.\d{1,6}", re.ASCII)
_NEARLY_ALL = 0.9
_SPELLING = "case, spaces or number format"
Predicate = Callable[[pa.StringArray], pa.BooleanArray]


@dataclass(frozen=True)
class ColumnCheck:
    """Checks of the values of one column of a split. Each check adds its data errors to `findings`."""

    table: RawTable
    column: str
    findings: Findings

    @property
    def values(self) -> pa.ChunkedArray:
        return self.table.columns[self.column].values

    def fault_rows(self, code: str, problem: str, rows: Sequence[int], count: int | None = None) -> None:
        """Add a data error for each row number in `rows`, such as "Row 3 of train.csv, column 'text', is blank.".

        problem: end of the message. count: number of all rows with this data error; None: `rows` has all of them.
        """
        listed = rows[:LISTED_PER_CODE]
        for row in listed:
            self.findings.fault(
                code, f"{self.place(row)} {problem}", split=self.table.split, row=row, column=self.column
            )
        if more := (len(rows) if count is None else count) - len(listed):
            self.findings.count_more(code, more)

    def place(self, row: int) -> str:
        """Return the beginning of a message about a value: "Row 3 of train.csv, column 'text',"."""
        return f"Row {row} of {self.table.file}, column '{self.column}',"

    def rows(self, predicate: Predicate) -> list[int]:
        """Return the row numbers of the values for which `predicate` returns true. Null counts as false."""
        masks = [pc.fill_null(predicate(chunk), False) for chunk in self.values.chunks]
        return self.table.rows[pa.chunked_array(masks, pa.bool_()).to_numpy()].tolist()

    def check_null(self, code: str, problem: str, predicate: Predicate = pc.is_null) -> None:
        """Add a data error for each missing value. predicate: true for a missing value. problem: see `fault_rows`.

        Lists, times and bytes (see UNREAD) are null in the table, but not missing. For each of these kinds, the table
        has the first 100 row numbers. If a kind has more rows, this method only counts the missing values.
        """
        rows = self.rows(predicate)
        unread = [kind for name, kind in self.table.columns[self.column].kinds.items() if name in UNREAD]
        listed, count = {row for kind in unread for row in kind.rows}, sum(kind.count for kind in unread)
        missing = [row for row in rows if row not in listed] if len(listed) == count else []
        self.fault_rows(code, problem, missing, len(rows) - count)

    def check_unread(self) -> None:
        """Report labels or regression targets that are lists, objects, dates, times or bytes. Code: not_a_label."""
        for name, kind in sorted(self.table.columns[self.column].kinds.items()):
            if name in UNREAD:
                self.fault_rows("not_a_label", f"is a {name}. {UNREAD[name]}", kind.rows, kind.count)

    def check_characters(self) -> None:
        """Report values with a NUL character. Code: bad_character."""
        rows = self.rows(lambda chunk: pc.match_substring(chunk, "\x00"))
        self.fault_rows(
            "bad_character", "has a NUL character. Remove it; if the file is UTF-16, save it as UTF-8.", rows
        )


def check_texts(table: RawTable, column: str, findings: Findings) -> None:
    """Report invalid texts: not_text, null_text, blank_text, bad_character, text_too_long. Warning: long_text."""
    check = ColumnCheck(table, column, findings)
    kinds = table.columns[column].kinds
    for name in sorted(kinds.keys() - {KINDS[str]}):
        problem = f"is a {name}, not a text. {UNREAD.get(name, 'Write it as a string.')}"
        check.fault_rows("not_text", problem, kinds[name].rows, kinds[name].count)
    check.check_null("null_text", "is null. Add a text or remove the row.")
    check.fault_rows("blank_text", "is blank. Add a text or remove the row.", check.rows(_is_blank))
    check.check_characters()
    lengths = pc.fill_null(pc.utf8_length(check.values), 0).to_numpy()
    long = lengths > limits.LONG_TEXT_CHARS
    for row, length in zip(table.rows[long].tolist(), lengths[long].tolist(), strict=True):
        message = f"{check.place(row)} has {length:,} characters"
        if length > limits.MAX_TEXT_CHARS:
            message += f"; the limit is {limits.MAX_TEXT_CHARS:,}. Shorten the text, or close an open quote."
            findings.fault("text_too_long", message, split=table.split, row=row, column=column)
        else:
            message += ". An encoder may ignore the end (see model.windows). If the end matters, split the text."
            findings.warn("long_text", message, split=table.split, row=row, column=column)


def check_labels(table: RawTable, column: str, findings: Findings) -> None:
    """Report invalid labels. Data errors: null_label, mixed_types, not_a_label, label_too_long, bad_character."""
    check = ColumnCheck(table, column, findings)
    check.check_unread()
    check.check_null("null_label", "has no label. Add one or remove the row.", is_null_or_blank)
    known = {name: kind for name, kind in table.columns[column].kinds.items() if name not in UNREAD}
    usual = max(known, key=lambda name: known[name].count, default="")
    for name in sorted(known.keys() - {usual}):
        problem = f"is a {name}; most labels are a {usual}. Use one type."
        check.fault_rows("mixed_types", problem, known[name].rows, known[name].count)
    long = check.rows(lambda chunk: pc.greater(pc.utf8_length(chunk), limits.MAX_LABEL_CHARS))
    problem = f"is a label of more than {limits.MAX_LABEL_CHARS:,} characters. Shorten it, or set label_column."
    check.fault_rows("label_too_long", problem, long)
    check.check_characters()


def _is_blank(chunk: pa.StringArray) -> pa.BooleanArray:
    return pc.equal(pc.utf8_trim_whitespace(chunk), "")


def is_null_or_blank(chunk: pa.StringArray) -> pa.BooleanArray:
    """Return a mask [strings]: true for each string that is null, empty or white space."""
    return pc.fill_null(_is_blank(chunk), True)


def count_labels(values: pa.ChunkedArray) -> dict[str, int]:
    """Return each label of a string column with its number of rows. Omit null, blank and too long labels."""
    counts = {entry["values"] or "": entry["counts"] for entry in pc.value_counts(values).to_pylist()}
    return {label: count for label, count in counts.items() if label.strip() and len(label) <= limits.MAX_LABEL_CHARS}


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return the labels in the order of their indices: by value if all are whole numbers, else by code point."""
    labels = list(labels)
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def is_decimal(text: str) -> bool:
    """Return whether a text is a finite number, such as 2, 2.5 or 1e-3."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def advise_numbers(labels: Collection[str]) -> str:
    """Return a sentence that advises regression if there are many labels and nearly all are numbers, else ""."""
    if len(labels) <= limits.MAX_DECIMALS:
        return ""
    numbers = sum(is_decimal(label.replace(",", ".")) for label in labels)
    return " To predict numbers, set the metric pearson." if numbers >= _NEARLY_ALL * len(labels) else ""


def rare_labels(train: Mapping[str, int], advice: str) -> list[str]:
    """Return the beginning of a message for each label with one row, such as "The label 'spam' has one row".

    train: label → number of rows. advice: result of `advise_numbers`. With advice, one text covers all these labels.
    """
    rare = [label for label, count in train.items() if count == 1]
    if len(rare) > 1 and advice:
        return [f"{len(rare):,} labels, such as {', '.join(map(repr, rare[:5]))}, have one row each"]
    return [f"The label '{label}' has one row" for label in rare]


def check_label_set(
    counts: Mapping[str, Mapping[str, int]], tables: Mapping[str, RawTable], column: str, findings: Findings
) -> None:
    """Report problems of the set of labels. counts: split → label → number of rows. tables: split → table.

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
        check = ColumnCheck(tables[split], column, findings)
        for label in unknown[:LISTED_PER_CODE]:
            row = int(tables[split].rows[pc.index(check.values, label).as_py()])
            copies = counted(counts[split][label], "row")
            problem = f"has the label '{label}' (in {copies}), which is not in train. {_nearest(label, train)}"
            check.fault_rows("unknown_label", problem + (advice if label == unknown[0] else ""), [row])
        if len(unknown) > LISTED_PER_CODE:
            findings.count_more("unknown_label", len(unknown) - LISTED_PER_CODE)


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
        message = f"The labels {shown} of {file} begin or end with spaces. Spaces are part of a label. Remove them."
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
