"""The validation report of a dataset, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tlm_core.tables.findings import Findings
from tlm_core.tasks.checks import count_labels, sort_labels
from tlm_core.tasks.columns import Columns
from tlm_core.tasks.duplicates import TextScan
from tlm_core.tasks.targets import as_numbers
from tlm_core.tasks.task import SPLITS, earlier_splits
from tlm_core.tasks.types import TaskType
from tlm_core.wording import counted, numbered_rows

_LISTED = 100
_BINS = 12
_PREVIEW_ROWS = 5
_PREVIEW_CHARS = 300


@dataclass(frozen=True)
class SplitData:
    """The chosen columns of one split as strings. rows: record numbers, [rows]. scan: keys and word counts of texts."""

    rows: NDArray[np.int64]
    text: pa.ChunkedArray
    text_pair: pa.ChunkedArray | None
    label: pa.ChunkedArray
    scan: TextScan
    type: TaskType

    def select(self, positions: NDArray[np.int64]) -> SplitData:
        """Return the data of the rows at `positions` (sorted indices, from 0)."""
        mask = np.zeros(len(self.rows), dtype=np.bool_)
        mask[positions] = True
        pair = self.text_pair.filter(mask) if self.text_pair is not None else None
        scan = TextScan(self.scan.keys[positions], self.scan.words[positions])
        label = self.label.filter(mask)
        return SplitData(self.rows[positions], self.text.filter(mask), pair, label, scan, self.type)

    def targets(self) -> NDArray[np.float64]:
        """Return the regression targets, [rows]. Raises ValueError for values that are not numbers."""
        return as_numbers(self.label).to_numpy()


class Report(TypedDict):
    """The validation report of a dataset without data errors: `ok` is true, and `faults` and `fault_counts` are empty.

    warnings: the first 100 of each code. warning_counts: code → number of all warnings. columns: fields of `Columns`.
    labels: for each label, its number of rows in each split; empty for regression. targets: statistics by split; None
    for classes. counts: split → number of rows. lengths: statistics of words per row. duplicates: equal texts in one
    split. overlap: equal texts in several splits. preview: the first train rows.
    """

    ok: bool
    faults: list[dict[str, object]]
    fault_counts: dict[str, int]
    warnings: list[dict[str, object]]
    warning_counts: dict[str, int]
    notes: list[str]
    columns: dict[str, str | None]
    labels: list[dict[str, str | int]]
    targets: dict[str, dict[str, float]] | None
    counts: dict[str, int]
    lengths: dict[str, object]
    duplicates: dict[str, dict[str, object]]
    overlap: dict[str, object]
    preview: list[dict[str, int | str | None]]


def build_report(splits: Mapping[str, SplitData], columns: Columns, findings: Findings) -> Report:
    """Return the report of a dataset without data errors. Warnings: conflicting_labels, overlap."""
    duplicates = {split: _duplicates(data, split, findings) for split, data in splits.items()}
    overlap = _overlap(splits, findings)
    train = splits["train"]
    return {
        "ok": True,
        "faults": [],
        "fault_counts": {},
        "warnings": [asdict(warning) for warning in findings.warnings],
        "warning_counts": dict(findings.warning_counts),
        "notes": findings.notes,
        "columns": asdict(columns),
        "labels": _labels(splits) if train.type.has_classes else [],
        "targets": None if train.type.has_classes else _targets(splits),
        "counts": {split: len(data.rows) for split, data in splits.items()},
        "lengths": _lengths(splits),
        "duplicates": duplicates,
        "overlap": overlap,
        "preview": _rows(train, range(min(_PREVIEW_ROWS, len(train.rows)))),
    }


def _targets(splits: Mapping[str, SplitData]) -> dict[str, dict[str, float]]:
    """Return split → `min`, `max` and `mean` of the regression targets."""
    numbers = {split: data.targets() for split, data in splits.items()}
    return {
        split: {"min": float(values.min()), "max": float(values.max()), "mean": float(values.mean())}
        for split, values in numbers.items()
    }


def _labels(splits: Mapping[str, SplitData]) -> list[dict[str, str | int]]:
    """Return an entry for each label, such as `{"label": "spam", "train": 80, "validation": 10, "test": 10}`."""
    counts = {split: count_labels(splits[split].label) for split in SPLITS}
    return [
        {"label": label, **{split: of_split.get(label, 0) for split, of_split in counts.items()}}
        for label in sort_labels(counts["train"])
    ]


def _lengths(splits: Mapping[str, SplitData]) -> dict[str, object]:
    """Return mean, percentiles, maximum and histogram of words per row. A bin begins at `from`, and has `rows` rows."""
    words = np.concatenate([data.scan.words for data in splits.values()])
    p50, p95, most = np.percentile(words, [50, 95, 99])
    least = int(words.min())
    width = int(most - least) // _BINS + 1
    counts = np.bincount(np.minimum((words - least) // width, _BINS)).tolist()
    bins = [{"from": least + number * width, "rows": rows} for number, rows in enumerate(counts)]
    facts = {"mean_words": round(float(words.mean()), 2), "p50": float(p50), "p95": float(p95), "max": int(words.max())}
    return {**facts, "bins": bins}


def _duplicates(data: SplitData, split: str, findings: Findings) -> dict[str, object]:
    """Return numbers of `copies` (repeated rows) and `conflicting` texts, and `conflicts`: rows with these texts."""
    codes = pc.index_in(data.label, value_set=pc.unique(data.label)).to_numpy()
    _, starts, places = np.unique(data.scan.keys, return_index=True, return_inverse=True)
    keys = starts[places]  # hashes differ between processes, so the first row of a text is its key
    order = np.lexsort((codes, keys))
    same_text = np.diff(keys[order]) == 0
    conflicts = order[1:][same_text & (np.diff(codes[order]) != 0)]
    conflicting = len(np.unique(keys[conflicts]))
    alike = order[np.isin(keys[order], keys[conflicts])]  # all rows whose text has several labels
    if conflicting:
        first = numbered_rows(np.sort(data.rows[alike])[:6].tolist())
        texts = counted(conflicting, "text")
        message = f"{split} has {texts} with different labels ({first}). Correct the wrong labels."
        findings.warn("conflicting_labels", message, split=split, row=int(data.rows[conflicts].min()))
    rows = _rows(data, alike[:_LISTED])
    return {"copies": int(same_text.sum()), "conflicting": conflicting, "conflicts": rows}


def _overlap(splits: Mapping[str, SplitData], findings: Findings) -> dict[str, object]:
    """Return counts such as `train_test`, the test rows whose text is in train, and the first 100 rows: `test_rows`."""
    result: dict[str, object] = {}
    for split in ("validation", "test"):
        data = splits[split]
        copies = {name: np.isin(data.scan.keys, splits[name].scan.keys) for name in earlier_splits(split)}
        rows = data.rows[np.logical_or.reduce(list(copies.values()))]
        result |= {f"{name}_{split}": int(among.sum()) for name, among in copies.items()}
        result[f"{split}_rows"] = rows[:_LISTED].tolist()
        if len(rows):
            first = numbered_rows(rows[:5].tolist())
            message = (
                f"Rows of {split} that are also in {' or '.join(copies)}, ignoring case and spaces: {len(rows)} "
                f"({first}). The report also shows every score without these rows."
            )
            findings.warn("overlap", message, split=split, row=int(rows[0]))
    return result


def _rows(data: SplitData, positions: Sequence[int] | NDArray[np.int64]) -> list[dict[str, int | str | None]]:
    """Return a dict with record number, texts and label for each of `positions`. Long texts are truncated."""
    columns = {"text": data.text, "text_pair": data.text_pair, "label": data.label}
    indices = pa.array(positions, pa.int64())
    shown = {
        name: [_short(value) for value in values.take(indices).to_pylist()]
        for name, values in columns.items()
        if values is not None
    }
    return [
        {"row": int(data.rows[position]), **{name: values[index] for name, values in shown.items()}}
        for index, position in enumerate(positions)
    ]


def _short(text: str | None) -> str | None:
    return text[: _PREVIEW_CHARS - 1] + "…" if text is not None and len(text) > _PREVIEW_CHARS else text
