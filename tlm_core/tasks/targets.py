"""Label columns with regression targets: how they are detected, and data errors in their values."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlm_core.tables.findings import Findings
from tlm_core.tasks import limits
from tlm_core.tasks.checks import check_unread, count_labels, is_decimal, is_null_or_blank, null_rows, place_of
from tlm_core.tasks.table import RawTable
from tlm_core.tasks.types import TASK_TYPES, TaskType, task_type_of

# Head and block importance sums squared differences in 32 bits, which hold values up to 3.4e38.
LARGEST = 1e18
# Largest step between 32-bit targets, in standard deviations. The bias of a model has errors of this size.
MOST_ROUNDING = 0.01


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
    if len(distinct) <= limits.MAX_DECIMALS or not all(is_decimal(label) for label in distinct):
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
    words = [label for label in distinct if not is_decimal(label)]
    message = f"{where} is not a finite number. Write it with digits, such as 2.5."
    findings.fault_rows("not_a_number", message, _rows_with(table, column, words), split=split, column=column)
    large = [label for label in distinct if is_decimal(label) and abs(float(label)) > LARGEST]
    message = f"{where} is not between -{LARGEST:g} and {LARGEST:g}. Divide all targets by one number."
    findings.fault_rows("not_a_number", message, _rows_with(table, column, large), split=split, column=column)


def _rows_with(table: RawTable, column: str, labels: list[str]) -> list[int]:
    mask = pc.is_in(table.columns[column].values, value_set=pa.array(labels, pa.string()))
    return [int(row) for row in table.rows[mask.to_numpy().astype(bool)]]


def check_spread(tables: Mapping[str, RawTable], column: str, findings: Findings) -> None:
    """Check that train targets differ. Data error: one_class, if they are equal, or too close for 32-bit numbers."""
    file = tables["train"].file
    counts = count_labels(tables["train"].columns[column].values)
    values = [float(label) for label, count in counts.items() if is_decimal(label) for _ in range(count)]
    largest = max(map(abs, values), default=math.inf)
    if len(set(values)) == 1:
        message = f"All rows of {file} have the target {values[0]:g}. Add rows with other targets."
        findings.fault("one_class", message, split="train", column=column)
    elif largest <= LARGEST:
        spread, step = float(np.std(values)), float(np.spacing(np.float32(largest)))
        if step > MOST_ROUNDING * spread:
            message = (
                f"Training stores targets in 32 bits, in steps of {step:.2g} near {largest:g}. The targets of {file} "
                f"have a standard deviation of only {spread:.2g}. Subtract a constant from all targets. If all are "
                "tiny, multiply them by one number."
            )
            findings.fault("one_class", message, split="train", column=column)


def as_numbers(column: pa.ChunkedArray) -> pa.DoubleArray:
    """A validated string column as float64 (pyarrow)."""
    values = [float(value) for value in column.to_pylist()]
    return pa.array(np.asarray(values, dtype=np.float64))
