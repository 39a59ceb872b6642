"""Detect regression targets, and report data errors in their values."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlm_core.tables.findings import Findings
from tlm_core.tasks import limits
from tlm_core.tasks.checks import ColumnCheck, count_labels, is_decimal, is_null_or_blank
from tlm_core.tasks.metrics import REGRESSION, SINGLE_LABEL
from tlm_core.tasks.table import RawTable
from tlm_core.tasks.types import TASK_TYPES, TaskType, task_type_of

# The importance of heads and blocks is a sum of squared differences in 32 bits, which hold values up to 3.4e38.
LARGEST = 1e18
# Largest step between neighboring 32-bit targets, in standard deviations. The bias of a model has errors of this size.
MOST_ROUNDING = 0.01


def infer_type(train: RawTable, column: str, metric: str | None, findings: Findings) -> TaskType:
    """Return the task type of `metric`. If `metric` is None, infer the type from the values of the label column.

    More than MAX_DECIMALS different numbers, not all of them whole, are regression targets. Other values are labels.
    Regression adds a note if `metric` is given, else the warning read_as_regression.
    """
    if metric is not None:
        task_type = task_type_of(metric)
        if not task_type.has_classes:
            findings.note(f"label: column '{column}' holds {task_type.target}s, because the metric is {metric}")
        return task_type
    distinct = count_labels(train.columns[column].values)
    are_numbers = len(distinct) > limits.MAX_DECIMALS and all(map(is_decimal, distinct))
    if not are_numbers or all(float(label).is_integer() for label in distinct):
        return TASK_TYPES[SINGLE_LABEL]
    message = (
        f"Column '{column}' of {train.file} has {len(distinct):,} different decimal numbers and is read as regression "
        "targets (metric pearson). Set the metric macro_f1 if the numbers are names of classes."
    )
    findings.warn("read_as_regression", message, split="train", column=column)
    return TASK_TYPES[REGRESSION]


def check_targets(table: RawTable, column: str, findings: Findings) -> None:
    """Report the invalid regression targets of one split. Data errors: null_label, not_a_label, not_a_number."""
    check = ColumnCheck(table, column, findings)
    check.check_unread()
    check.check_null("null_label", "has no regression target. Add a number or remove the row.", is_null_or_blank)
    distinct = count_labels(check.values)
    words = [label for label in distinct if not is_decimal(label)]
    large = [label for label in distinct if is_decimal(label) and abs(float(label)) > LARGEST]
    for labels, problem in (
        (words, "is not a finite number. Write it with digits, such as 2.5."),
        (large, f"is not between -{LARGEST:g} and {LARGEST:g}. Divide all targets by one number."),
    ):
        rows = check.rows(partial(pc.is_in, value_set=pa.array(labels, pa.string())))
        check.fault_rows("not_a_number", problem, rows)


def check_spread(train: RawTable, column: str, findings: Findings) -> None:
    """Report train targets that are all equal, or too close together for 32-bit numbers. Data error: one_class."""
    file, counts = train.file, count_labels(train.columns[column].values)
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
    """Return a validated string column as numbers. Raises ValueError for a value that is not a number."""
    return pa.array(map(float, column.to_pylist()), pa.float64())
