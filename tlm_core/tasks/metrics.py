"""Scores of a single-label classifier or of predicted amounts, baselines and the spread over several runs.

What cannot be computed is None and stands beside a `reason`; no score is ever made up as 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Metric = Literal["macro_f1", "micro_f1", "accuracy", "f1", "matthews", "pearson", "spearman"]
METRICS: tuple[str, ...] = get_args(Metric)
# The two that compare amounts: a task with one of them has a number for each text in place of a label.
REGRESSION = ("pearson", "spearman")
ALWAYS = ("macro_f1", "micro_f1", "accuracy")

LabelIds = Sequence[int] | NDArray[np.integer[Any]]


def scores_for(metric: str) -> tuple[str, ...]:
    """Names of the scores that a report gives for a task with this metric, the usual three first."""
    if metric in REGRESSION:
        return (*ALWAYS, *REGRESSION)
    return ALWAYS if metric in ALWAYS else (*ALWAYS, metric)


def scores_shown(metric: str) -> tuple[str, ...]:
    """Those of `scores_for` that a task with this metric can have: in regression the correlations alone."""
    return REGRESSION if metric in REGRESSION else scores_for(metric)


def score(
    labels_true: LabelIds,
    labels_pred: LabelIds,
    n_labels: int,
    metric: str,
    *,
    in_train: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Macro-F1, micro-F1, accuracy, scores per class and the confusion matrix.

    labels_true, labels_pred: (rows,) label indices in [0, n_labels). metric: which of the scores is `value`.
    in_train: (rows,) True where the row's text also stands in train; then `deduplicated` holds the same
    scores over the other rows, since a repeated text measures memory rather than skill.

    Macro-F1 is the mean over the classes that occur among true or predicted labels. With one label for
    each text micro-F1 equals accuracy; both are given, since papers name either. Where one of them is the metric,
    `f1` is that of label 1 out of two, and `matthews` the correlation of answers and labels.
    Raises ValueError if shapes, indices or the metric do not hold.
    """
    if metric not in METRICS or metric in REGRESSION:
        raise ValueError(f"'{metric}' is no metric of labels; they are {', '.join(set(METRICS) - set(REGRESSION))}")
    if metric == "f1" and n_labels != 2:
        raise ValueError(f"'f1' is of one label against another; there are {n_labels} labels")
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
    if metric == "f1":
        result["f1"] = per_class[1]["f1"]
    elif metric == "matthews":
        result["matthews"] = _matthews(confusion) if len(true) else None
    result["value"] = result[metric]
    if not len(true):
        result["reason"] = "there is no row to score"
    elif result["value"] is None:
        result["reason"] = per_class[1]["reason"]
    return result


def _matthews(confusion: NDArray[np.int64]) -> float:
    """Correlation of true and predicted labels; 0, its limit, where all answers or all labels are the same."""
    table = confusion.astype(np.float64)
    rows, true, pred = table.sum(), table.sum(axis=1), table.sum(axis=0)
    spread = (rows**2 - pred @ pred) * (rows**2 - true @ true)
    return float((np.trace(table) * rows - true @ pred) / np.sqrt(spread)) if spread > 0 else 0.0


def score_values(
    true: NDArray[np.floating[Any]],
    predicted: NDArray[np.floating[Any]],
    metric: str,
    *,
    in_train: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Pearson's and Spearman's correlation of amounts, (rows,) each; the scores of classes are null.

    metric: which of the two is `value`. in_train: as in `score`. Raises ValueError if shapes or metric do not hold.
    """
    if metric not in REGRESSION:
        raise ValueError(f"'{metric}' does not compare amounts; these do: {', '.join(REGRESSION)}")
    if true.ndim != 1 or true.shape != predicted.shape:
        raise ValueError(f"true and predicted amounts must be two equal rows; got {true.shape}, {predicted.shape}")
    result = _correlations(true, predicted, metric)
    if in_train is not None:
        kept = ~in_train
        result["deduplicated"] = _correlations(true[kept], predicted[kept], metric)
        result["deduplicated"]["rows_left_out"] = int(in_train.sum())
    return result


def _correlations(true: NDArray[Any], predicted: NDArray[Any], metric: str) -> dict[str, Any]:
    result: dict[str, Any] = {"metric": metric, "rows": len(true), **dict.fromkeys(ALWAYS), "per_class": []}
    result |= {"confusion": [], "pearson": None, "spearman": None}
    if strange := int((~np.isfinite(predicted)).sum()):
        result["reason"] = f"{strange} of {len(true)} predictions are no finite numbers"
    elif len(true) < 2 or np.ptp(true) == 0 or np.ptp(predicted) == 0:
        result["reason"] = "a correlation needs two rows or more, and amounts that differ on both sides"
    else:
        for name, sides in (("pearson", (true, predicted)), ("spearman", (_ranks(true), _ranks(predicted)))):
            left, right = (side.astype(np.float64) for side in sides)
            result[name] = float(np.corrcoef(left, right)[0, 1])
    result["value"] = result[metric]
    return result


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: NDArray[np.float64] = (last - (counts - 1) / 2)[group]
    return shared


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


def better(score: float | None, than: float | None) -> bool:
    """Whether a score beats another; one that could not be computed beats none."""
    return score is not None and (than is None or score > than)


def best_of(scores: Sequence[float | None]) -> int:
    """Which of the scores, one at least, is the best; the first wins ties."""
    best = 0
    for number, score in enumerate(scores):
        if better(score, scores[best]):
            best = number
    return best


def chance_in_words(difference: float, spreads: Sequence[float | None]) -> str:
    """What the seeds' standard deviations on both sides leave of a difference; empty where it is beyond both."""
    known = [spread for spread in spreads if spread is not None]
    if len(known) < len(spreads):
        return "One seed tells nothing of chance: give at least three."
    if abs(difference) <= max(known):
        return f"The difference is within one standard deviation ({max(known):.4f}), so it may be chance."
    return ""
