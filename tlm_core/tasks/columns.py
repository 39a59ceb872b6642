"""Choose the columns of the text, the second text and the label.

A column that the options do not name is inferred. A note or a warning states the reason for this column.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import pyarrow.compute as pc

from tlm_core.tables.findings import Findings
from tlm_core.tables.records import Unread
from tlm_core.tasks import limits
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.table import NO_LABELS, UNREAD, RawTable
from tlm_core.wording import suggestion

LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "y", "sentiment", "intent", "topic", "relation", "tag",
    "gold_label",
)  # fmt: skip
TEXT_NAMES = (
    "text", "sentence", "sentence1", "premise", "question1", "text1", "text_a", "sentence_a", "query", "content",
    "document", "review", "body", "message", "comment", "tweet", "abstract", "utterance", "question", "passage",
    "string",
)  # fmt: skip
PAIRS = {
    "text": ("text_pair", "text2", "text_b"),
    "sentence": ("sentence_pair",),
    "sentence1": ("sentence2",),
    "premise": ("hypothesis",),
    "question1": ("question2",),
    "text1": ("text2",),
    "text_a": ("text_b",),
    "sentence_a": ("sentence_b",),
    "query": ("passage", "document"),
    "question": ("sentence", "passage", "answer", "context"),
}


@dataclass(frozen=True)
class Columns:
    """The names of the columns with texts, second texts and labels. text_pair: None for single texts."""

    text: str
    text_pair: str | None
    label: str

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text, self.text_pair) if self.text_pair else (self.text,)


def choose_columns(tables: Mapping[str, RawTable], options: DatasetOptions, findings: Findings) -> Columns | None:
    """Return the columns of text, second text and label. Columns that the options omit are inferred from train.

    tables: split → table. After the data error missing_column or no_header, return None. Warning: guessed_column.
    """
    train = tables["train"]
    label, text = options.label_column, options.text_column
    if label is None and (name := _only_list(train)) is not None:
        message = f"{train.file} has one row, and its '{name}' is a list or object. Write one object per line."
        findings.fault("missing_column", message, split=train.split)
        return None
    if label is None:
        label = _infer_label(train, {text, options.text_pair_column}, findings)
    if text is None:
        text = _infer_text(train, {label, options.text_pair_column}, findings)
    if label is None or text is None:
        return None
    pair = options.text_pair_column
    if pair is None and (pair := _named(train, PAIRS.get(text.lower(), ()), {text, label})) is not None:
        findings.note(f"text pair: column '{pair}' beside '{text}', by their names (text_pair_column='' disables it)")
    columns = Columns(text, pair or None, label)
    if not all(_present(columns, table, findings) for table in tables.values()):
        return None
    unused = [name for name in train.columns if name not in (*columns.texts, label)]
    if unused:
        findings.note(f"columns not used: {', '.join(unused[:20])}")
    return columns if _has_header(train, columns, options, findings) else None


def _only_list(table: RawTable) -> str | None:
    """If the file has one row and no label column, return the column with a list or object, as in `{"data": [...]}`."""
    if len(table.rows) > 1 or _named(table, LABEL_NAMES, ()) is not None:
        return None
    return next((name for name, column in table.columns.items() if Unread.NESTED.value in column.kinds), None)


def _present(columns: Columns, table: RawTable, findings: Findings) -> bool:
    missing = [name for name in (*columns.texts, columns.label) if name not in table.columns]
    for name in missing:
        otherwise = f"Its columns are {_listed(table.columns)}."
        message = f"{table.file} has no column '{name}'. {suggestion(name, table.columns, otherwise, cutoff=0.7)}"
        if name == columns.label and table.split != "train":
            message += NO_LABELS
        findings.fault("missing_column", message, split=table.split, column=name)
    return not missing


def _listed(names: Iterable[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted[:20]) + (" and more" if len(quoted) > 20 else "")


def _named(table: RawTable, names: tuple[str, ...], excluded: Collection[str | None]) -> str | None:
    """Return the first of `names` that is a column and not `excluded`, as the table spells it. Case is ignored."""
    by_lower = {column.lower(): column for column in reversed(list(table.columns)) if column not in excluded}
    return next((by_lower[name] for name in names if name in by_lower), None)


def _infer_label(table: RawTable, excluded: Collection[str | None], findings: Findings) -> str | None:
    named = _named(table, LABEL_NAMES, excluded)
    if named is not None:
        findings.note(f"label: column '{named}', by its name")
        return named
    rows = len(table.rows)
    distinct = {
        name: pc.count_distinct(column.values).as_py()
        for name, column in table.columns.items()
        if name not in excluded and not UNREAD.keys() & column.kinds.keys()
    }
    ceiling = min(limits.MAX_LABELS, rows // 2)
    candidates = sorted((count, name) for name, count in distinct.items() if 2 <= count <= ceiling)
    if not candidates:
        counts = ", ".join(f"'{name}' {count}" for name, count in list(distinct.items())[:20])
        message = f"No column of {table.file} looks like a label (distinct values in {rows} rows: {counts})."
        findings.fault("missing_column", f"{message} Set label_column.", split=table.split)
        return None
    count, name = candidates[0]
    findings.note(f"label: column '{name}' has {count} distinct values in {rows} rows")
    if len(candidates) > 1:
        others = _listed(other for _, other in candidates[1:])
        message = f"Column '{name}' of {table.file} is read as the label; other candidates: {others}. Set label_column."
        findings.warn("guessed_column", message, split=table.split, column=name)
    return name


def _infer_text(table: RawTable, excluded: Collection[str | None], findings: Findings) -> str | None:
    named = _named(table, TEXT_NAMES, excluded)
    if named is not None:
        findings.note(f"text: column '{named}', by its name")
        return named
    lengths = {
        name: pc.mean(pc.utf8_length(column.values)).as_py() or 0.0
        for name, column in table.columns.items()
        if name not in excluded and set(column.kinds) <= {"text"}
    }
    if not lengths:
        message = f"No column of {table.file} has texts besides the label ({_listed(table.columns)})."
        findings.fault("missing_column", f"{message} Set text_column.", split=table.split)
        return None
    name = max(lengths, key=lambda column: lengths[column])
    findings.note(f"text: column '{name}' has the longest values, {lengths[name]:.0f} characters on average")
    return name


def _has_header(table: RawTable, columns: Columns, options: DatasetOptions, findings: Findings) -> bool:
    """Return whether the first line is a header. If not, add the data error no_header.

    The first line is a record if the label column was inferred from its values, and one value equals the column's name.
    """
    if options.label_column is not None or columns.label.lower() in LABEL_NAMES:
        return True
    if not pc.any(pc.equal(table.columns[columns.label].values, columns.label)).as_py():
        return True
    message = f"The first line of {table.file} is a record, not a header, because '{columns.label}' is also a label."
    advice = "Add a header such as text,label, or set label_column."
    findings.fault("no_header", f"{message} {advice}", split=table.split, column=columns.label)
    return False
