"""Label columns that hold amounts: when a column is taken for one, and what is wrong in its values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlm_core.tasks.checks import check_unread, count_labels, is_null_or_blank, null_rows
from tlm_core.tasks.findings import Findings
from tlm_core.tasks.metrics import REGRESSION
from tlm_core.tasks.options import Limits
from tlm_core.tasks.table import RawTable

# Weighing heads and blocks takes squares of differences, and sums of them, in 32 bits: nothing there is above 3.4e38.
LARGEST = 1e18


def is_regression(train: RawTable, column: str, metric: str | None, findings: Findings, limits: Limits) -> bool:
    """Whether the label column holds amounts: the metric says so, or it has many different decimal numbers.

    metric: None if none is known. Says in the report what was decided. Warning: read_as_amounts.
    """
    if metric is not None:
        if metric in REGRESSION:
            findings.note(f"label: '{column}' is read as amounts (regression), as the metric {metric} says")
        return metric in REGRESSION
    distinct = count_labels(train.columns[column].values)
    if len(distinct) <= limits.max_decimals or not all(_is_decimal(label) for label in distinct):
        return False
    if all(float(label).is_integer() for label in distinct):
        return False
    message = (
        f"'{column}' of {train.file} has {len(distinct):,} different decimal numbers, so it is read as amounts to "
        "predict (regression, metric pearson); give the metric macro_f1 if they are names of classes"
    )
    findings.warn("read_as_amounts", message, split="train", column=column)
    return True


def check_amounts(table: RawTable, column: str, findings: Findings) -> None:
    """Faults: null_label, not_a_label, not_a_number."""
    split = table.split
    where = f"row {{row}} of {table.file}: '{column}'"
    check_unread(table, column, findings)
    null, total = null_rows(table, column, is_null_or_blank)
    message = f"{where} has no amount; add it or leave the row out"
    findings.fault_rows("null_label", message, null, split=split, column=column, total=total)
    distinct = count_labels(table.columns[column].values)
    strange = [label for label in distinct if not _is_decimal(label)]
    message = f"{where} is no finite number, which regression needs; write it with digits, such as 2.5"
    findings.fault_rows("not_a_number", message, _rows_with(table, column, strange), split=split, column=column)
    large = [label for label in distinct if _is_decimal(label) and abs(float(label)) > LARGEST]
    message = f"{where} is beyond {LARGEST:g}, too large for training in 32 bits; divide all amounts by the same number"
    findings.fault_rows("not_a_number", message, _rows_with(table, column, large), split=split, column=column)


def _rows_with(table: RawTable, column: str, labels: list[str]) -> list[int]:
    found = pc.is_in(table.columns[column].values, value_set=pa.array(labels, pa.string()))
    return [int(row) for row in table.rows[found.to_numpy().astype(bool)]]


def check_spread(tables: Mapping[str, RawTable], column: str, findings: Findings) -> None:
    """Fault: one_class, where all train rows have the same amount, or one that is the same in 32 bits."""
    file = tables["train"].file
    values = {float(label) for label in count_labels(tables["train"].columns[column].values) if _is_decimal(label)}
    if len(values) == 1:
        message = f"all rows of {file} have the amount {values.pop():g}; regression needs different ones"
        findings.fault("one_class", message, split="train", column=column)
    elif max(map(abs, values), default=0.0) <= LARGEST and len(set(np.array(list(values), np.float32))) == 1:
        message = (
            f"all amounts of {file} are {min(values):g} in 32 bits, in which training computes; subtract what they "
            "share, or multiply them all by the same number"
        )
        findings.fault("one_class", message, split="train", column=column)


def as_numbers(column: Any) -> Any:
    """A checked string column as float64 (pyarrow)."""
    values = [float(value) for value in column.to_pylist()]
    return pa.array(np.asarray(values, dtype=np.float64))


def _is_decimal(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False
