"""Scores of a single-label classifier, the majority baseline and the spread over several runs.

What cannot be computed is None and stands beside a `reason`; no score is ever made up as 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Metric = Literal["macro_f1", "micro_f1", "accuracy"]
METRICS: tuple[str, ...] = get_args(Metric)

LabelIds = Sequence[int] | NDArray[np.integer[Any]]


def score(
    labels_true: LabelIds,
    labels_pred: LabelIds,
    n_labels: int,
    metric: str,
    *,
    in_train: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Macro-F1, micro-F1, accuracy, scores per class and the confusion matrix.

    labels_true, labels_pred: (rows,) label indices in [0, n_labels). metric: which of the three is `value`.
    in_train: (rows,) True where the row's text also stands in train; then `deduplicated` holds the same
    scores over the other rows, since a repeated text measures memory rather than skill.

    Macro-F1 is the mean over the classes that occur among true or predicted labels. With one label for
    each text micro-F1 equals accuracy; both are given, since papers name either.
    Raises ValueError if shapes, indices or the metric do not hold.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric '{metric}'; known are {', '.join(METRICS)}")
    true, pred = np.asarray(labels_true, dtype=np.int64), np.asarray(labels_pred, dtype=np.int64)
    if true.ndim != 1 or true.shape != pred.shape:
        raise ValueError(f"true and predicted labels must be two equal rows of indices; got {true.shape}, {pred.shape}")
    both = np.concatenate([true, pred])
    if len(both) and not (both.min() >= 0 and both.max() < n_labels):
        raise ValueError(f"label indices must lie in 0..{n_labels - 1}; got {both.min()}..{both.max()}")
    result = _scores(true, pred, n_labels, metric)
    if in_train is not None:
        if in_train.shape != true.shape:
            raise ValueError(f"the mask of repeated rows has shape {in_train.shape}, the labels {true.shape}")
        kept = ~in_train
        result["deduplicated"] = _scores(true[kept], pred[kept], n_labels, metric)
        result["deduplicated"]["rows_left_out"] = int(in_train.sum())
    return result


def _scores(true: NDArray[np.int64], pred: NDArray[np.int64], n_labels: int, metric: str) -> dict[str, Any]:
    confusion = np.bincount(true * n_labels + pred, minlength=n_labels * n_labels).reshape(n_labels, n_labels)
    per_class = [_class_scores(confusion, index) for index in range(n_labels)]
    f1 = [entry["f1"] for entry in per_class if entry["f1"] is not None]
    accuracy = float(np.trace(confusion) / len(true)) if len(true) else None
    result: dict[str, Any] = {
        "metric": metric,
        "rows": len(true),
        "macro_f1": math.fsum(f1) / len(f1) if f1 else None,
        "micro_f1": accuracy,
        "accuracy": accuracy,
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }
    result["value"] = result[metric]
    if not len(true):
        result["reason"] = "there is no row to score"
    return result


def _class_scores(confusion: NDArray[np.int64], index: int) -> dict[str, Any]:
    hits, support, predicted = (
        int(confusion[index, index]),
        int(confusion[index].sum()),
        int(confusion[:, index].sum()),
    )
    entry: dict[str, Any] = {
        "precision": hits / predicted if predicted else None,
        "recall": hits / support if support else None,
        "f1": 2 * hits / (support + predicted) if support + predicted else None,
        "support": support,
    }
    reasons = [text for missing, text in ((predicted, "never predicted"), (support, "no row has it")) if not missing]
    if reasons:
        entry["reason"] = "; ".join(reversed(reasons))
    return entry


def majority_baseline(
    train_labels: LabelIds,
    labels_true: LabelIds,
    n_labels: int,
    metric: str,
    *,
    in_train: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Scores of always answering the most frequent train label (the lowest index among equals).

    Returns what `score` returns, and `label`, the index answered. Raises ValueError if train is empty.
    """
    if not len(train_labels):
        raise ValueError("the majority label needs at least one train row")
    label = int(np.bincount(np.asarray(train_labels, dtype=np.int64), minlength=n_labels).argmax())
    answers = np.full(len(labels_true), label)
    return {**score(labels_true, answers, n_labels, metric, in_train=in_train), "label": label}


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, sample standard deviation (n - 1), lowest and highest of one score over several runs.

    A run without a value makes all of them None: leaving it out would flatter the mean.
    """
    known = [float(value) for value in values if value is not None]
    result: dict[str, Any] = {"n": len(values), "mean": None, "std": None, "min": None, "max": None}
    if not values:
        return {**result, "reason": "there is no run"}
    if len(known) < len(values):
        return {**result, "reason": f"{len(values) - len(known)} of {len(values)} runs have no value"}
    mean = math.fsum(known) / len(known)
    result |= {"mean": mean, "min": min(known), "max": max(known)}
    if len(known) == 1:
        return {**result, "reason": "one run has no spread; give more seeds"}
    result["std"] = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))
    return result
