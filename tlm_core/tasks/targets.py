"""Label columns with regression targets: how they are detected, and data errors in their values."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlm_core.tables.findings import Findings
from tlm_core.tasks import limits
from tlm_core.tasks.checks import check_unread, count_labels, is_null_or_blank, null_rows, place_of
from tlm_core.tasks.table import RawTable
from tlm_core.tasks.types import TASK_TYPES, TaskType, task_type_of

# Head and block importance sums squared differences in 32 bits, which hold values up to 3.4e38.
LARGEST = 1e18


def infer_type(train: RawTable, column: str, metric: str | None, findings: Findings) -> TaskType:
    """Return the task type of the metric. Without a metric, infer the type from the values.

    More than MAX_DECIMALS different numbers, not all of them whole, are regression targets. Other values are labels.
    Adds a note or the warning read_as_regression if the type is regression.
    """
    if metric is not None:
        task_type = task_type_of(metric)
        if not task_type.has_classes:
            findings.note(f"label: column '{column}' holds {task_type.target}s, because the metric is {metric}")
        return task_type
    classes, regression = TASK_TYPES["single_label"], TASK_TYPES["regression"]
    distinct = count_labels(train.columns[column].values)
    if len(distinct) <= limits.MAX_DECIMALS or not all(_is_decimal(label) for label in distinct):
        return classes
    if all(float(label).is_integer() for label in distinct):
        return classes
    message = (
        f"Column '{column}' of {train.file} has {len(distinct):,} different decimal numbers and is read as regression "
        "targets (metric pearson). Set the metric macro_f1 if the numbers are names of classes."
    )
    findings.warn("read_as_regression", message, split="train", column=column)
    return regression


def check_targets(table: RawTable, column: str, findings: Findings) -> None:
    """Check the values of one split. Data errors: null_label, not_a_label, not_a_number."""
    split = table.split
    where = place_of(table, column)
    check_unread(table, column, findings)
    null, total = null_rows(table, column, is_null_or_blank)
    message = f"{where} has no regression target. Add a number or remove the row."
    findings.fault_rows("null_label", message, null, split=split, column=column, total=total)
    distinct = count_labels(table.columns[column].values)
    words = [label for label in distinct if not _is_decimal(label)]
    message = f"{where} is not a finite number. Write it with digits, such as 2.5."
    findings.fault_rows("not_a_number", message, _rows_with(table, column, words), split=split, column=column)
    large = [label for label in distinct if _is_decimal(label) and abs(float(label)) > LARGEST]
    message = f"{where} is not between -{LARGEST:g} and {LARGEST:g}. Divide all targets by one number."
    findings.fault_rows("not_a_number", message, _rows_with(table, column, large), split=split, column=column)


def _rows_with(table: RawTable, column: str, labels: list[str]) -> list[int]:
    mask = pc.is_in(table.columns[column].values, value_set=pa.array(labels, pa.string()))
    return [int(row) for row in table.rows[mask.to_numpy().astype(bool)]]


def check_spread(tables: Mapping[str, RawTable], column: str, findings: Findings) -> None:
    """Check that train targets differ. Data error: one_class, if all are equal, or round to one 32-bit number."""
    file = tables["train"].file
    values = {float(label) for label in count_labels(tables["train"].columns[column].values) if _is_decimal(label)}
    if len(values) == 1:
        message = f"All rows of {file} have the target {values.pop():g}. Add rows with other targets."
        findings.fault("one_class", message, split="train", column=column)
    elif max(map(abs, values), default=0.0) <= LARGEST and len(set(np.array(list(values), np.float32))) == 1:
        message = (
            f"Training stores targets in 32 bits, and all targets of {file} are {min(values):g} in 32 bits. Subtract a "
            "constant from all targets, or multiply all by one number."
        )
        findings.fault("one_class", message, split="train", column=column)


def as_numbers(column: pa.ChunkedArray) -> pa.DoubleArray:
    """A validated string column as float64 (pyarrow)."""
    values = [float(value) for value in column.to_pylist()]
    return pa.array(np.asarray(values, dtype=np.float64))


def _is_decimal(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False
