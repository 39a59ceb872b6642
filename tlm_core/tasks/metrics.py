"""Metrics of classifiers and regression models, and the spread of scores over several runs.

A score that cannot be computed is None. For the metric of the task, `reason` states why. To add a metric, add an entry
to `METRICS`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Label indices or regression targets, [rows].
Targets = NDArray[np.number]

SINGLE_LABEL = "single_label"
REGRESSION = "regression"
ONE_RUN = "one run has no spread"


class Undefined(ValueError):
    """A metric has no value for these predictions. The message states the reason."""


@dataclass(frozen=True)
class Metric:
    """A metric of predictions.

    title: name in tables and the model card. task_type: name of the task type whose targets the metric compares.
    compute: true and predicted targets [rows] → value. Raises Undefined if there is no value.
    always: whether every report of the task type has the metric. If not, only tasks with this metric report it.
    same_as: name of a metric that always has the same value. The dashboard shows only that metric.
    positive_label: whether the metric needs two labels and measures only the second (index 1).
    """

    name: str
    title: str
    task_type: str
    compute: Callable[[Targets, Targets], float]
    always: bool = False
    same_as: str | None = None
    positive_label: bool = False


Counts = NDArray[np.int64]  # [labels], at least two


def _from_counts(score: Callable[[Counts, Counts, Counts], float]) -> Callable[[Targets, Targets], float]:
    """Return a `Metric.compute` for labels. score: receives the numbers of correct, true and predicted rows, [labels].

    The functions of scikit-learn need milliseconds, and a bootstrap computes thousands of scores.
    """

    def compute(true: Targets, predicted: Targets) -> float:
        labels = max(2, int(max(true.max(), predicted.max())) + 1)
        hits, rows, guesses = (np.bincount(x, minlength=labels) for x in (true[true == predicted], true, predicted))
        return score(hits, rows, guesses)

    return compute


def _macro_f1(hits: Counts, rows: Counts, guesses: Counts) -> float:
    used = rows + guesses > 0
    return float((2 * hits[used] / (rows + guesses)[used]).mean())


def _accuracy(hits: Counts, rows: Counts, _guesses: Counts) -> float:
    return float(hits.sum() / rows.sum())


def _positive_f1(hits: Counts, rows: Counts, guesses: Counts) -> float:
    # Without a row of this label, a perfect model would have no score, and a wrong model would have 0.
    if not rows[1]:
        raise Undefined("no row has the positive label")
    return float(2 * hits[1] / (rows[1] + guesses[1]))


def _matthews(hits: Counts, rows: Counts, guesses: Counts) -> float:
    """Return the correlation (Gorodkin 2004), or 0 if all true labels or all predicted labels are equal."""
    count = float(rows.sum())
    product = (count**2 - float(rows @ rows)) * (count**2 - float(guesses @ guesses))
    return (count * float(hits.sum()) - float(rows @ guesses)) / math.sqrt(product) if product else 0.0


def _correlation(name: str) -> Callable[[Targets, Targets], float]:
    def compute(true: Targets, predicted: Targets) -> float:
        from scipy import stats  # type: ignore[import-untyped, unused-ignore]

        if infinite := int((~np.isfinite(predicted)).sum()):
            raise Undefined(f"{infinite} of {len(true)} predictions are not finite numbers")
        if len(true) < 2 or np.ptp(true) == 0 or np.ptp(predicted) == 0:
            raise Undefined("a correlation needs two targets that differ, and two predictions that differ")
        return float(getattr(stats, name)(true.astype(np.float64), predicted.astype(np.float64)).statistic)

    return compute


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("macro_f1", "macro-F1", SINGLE_LABEL, _from_counts(_macro_f1), always=True),
        Metric("micro_f1", "micro-F1", SINGLE_LABEL, _from_counts(_accuracy), always=True, same_as="accuracy"),
        Metric("accuracy", "accuracy", SINGLE_LABEL, _from_counts(_accuracy), always=True),
        Metric("f1", "F1 of the last label", SINGLE_LABEL, _from_counts(_positive_f1), positive_label=True),
        Metric("matthews", "Matthews correlation", SINGLE_LABEL, _from_counts(_matthews)),
        Metric("pearson", "Pearson correlation", REGRESSION, _correlation("pearsonr"), always=True),
        Metric("spearman", "Spearman correlation", REGRESSION, _correlation("spearmanr"), always=True),
    )
}


def metrics_of(task_type: str) -> tuple[str, ...]:
    """Return the names of the metrics that compare the targets of a task type."""
    return tuple(name for name, metric in METRICS.items() if metric.task_type == task_type)


def scores_shown(metric: str) -> tuple[str, ...]:
    """Return the names of the scores that tables show: the `always` metrics of the task type, and `metric`."""
    task_type = METRICS[metric].task_type if metric in METRICS else SINGLE_LABEL
    usual = [name for name in metrics_of(task_type) if METRICS[name].always]
    return tuple(usual) if metric in usual else (*usual, metric)


def scores_for(metric: str) -> tuple[str, ...]:
    """Return the names of the scores in a report: the `always` metrics of classifiers, then `scores_shown(metric)`."""
    return tuple(dict.fromkeys((*scores_shown("macro_f1"), *scores_shown(metric))))


def score(
    true: ArrayLike, predicted: ArrayLike, n_labels: int, metric: str, *, repeated: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """Return the number of `rows`, the score of `metric` as `value`, and a score for each name of `scores_for(metric)`.

    true, predicted: label indices below n_labels, or regression targets (n_labels is 1), [rows]. repeated: True for
    each text that is also in an earlier split, [rows]. Then `deduplicated` has the scores without these rows, because a
    model can memorize repeated texts. For classifiers, the result also has `per_class` and `confusion`.

    Macro-F1 is the mean over the classes among true or predicted labels. With one label per text, micro-F1 equals
    accuracy. The result has both, because papers report either. For regression, the scores of classifiers are None.
    Raises ValueError if the shapes differ, a label index is out of range, or the metric is unknown or does not apply.
    """
    if metric not in METRICS:
        raise ValueError(f"Unknown metric '{metric}'. Valid metrics: {', '.join(METRICS)}.")
    classes = METRICS[metric].task_type == SINGLE_LABEL
    dtype = np.int64 if classes else np.float64
    truth, guess = np.asarray(true, dtype=dtype), np.asarray(predicted, dtype=dtype)
    if truth.ndim != 1 or truth.shape != guess.shape:
        raise ValueError(f"True and predicted targets need the same shape [rows]; got {truth.shape} and {guess.shape}.")
    if classes:
        _check_labels(truth, guess, n_labels, metric)
    result = _scores(truth, guess, n_labels, metric)
    if repeated is not None:
        if repeated.shape != truth.shape:
            raise ValueError(f"`repeated` has the shape {repeated.shape}, the targets {truth.shape}; they must match.")
        rest = _scores(truth[~repeated], guess[~repeated], n_labels, metric)
        result["deduplicated"] = {**rest, "rows_left_out": int(repeated.sum())}
    return result


def _check_labels(true: Targets, predicted: Targets, n_labels: int, metric: str) -> None:
    if METRICS[metric].positive_label and n_labels != 2:
        raise ValueError(f"The metric '{metric}' needs two labels, and the task has {n_labels}. Use macro_f1.")
    both = np.concatenate([true, predicted])
    if len(both) and not (both.min() >= 0 and both.max() < n_labels):
        raise ValueError(f"Label indices must lie in 0..{n_labels - 1}; got {both.min()}..{both.max()}.")


def _scores(true: Targets, predicted: Targets, n_labels: int, metric: str) -> dict[str, Any]:
    result: dict[str, Any] = {"metric": metric, "rows": len(true), **dict.fromkeys(scores_for(metric))}
    result |= {"per_class": [], "confusion": []}
    reasons: dict[str, str] = {}
    if METRICS[metric].task_type == SINGLE_LABEL:
        result |= _class_scores(true, predicted, n_labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns about targets that are nearly constant
        for name in scores_shown(metric):
            try:
                if not len(true):
                    raise Undefined("there is no row to score")
                result[name] = METRICS[name].compute(true, predicted)
            except Undefined as reason:
                reasons[name] = str(reason)
    result["value"] = result[metric]
    return result | ({"reason": reasons[metric]} if metric in reasons else {})


def _class_scores(true: Targets, predicted: Targets, n_labels: int) -> dict[str, object]:
    """Return `per_class`, an entry for each label, and `confusion`, numbers of rows [true labels, predicted labels]."""
    confusion = np.bincount(true * n_labels + predicted, minlength=n_labels**2).reshape(n_labels, n_labels)
    entries = []
    for hits, rows, guesses in zip(confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0), strict=True):
        reasons = [*([] if rows else ["no row has it"]), *([] if guesses else ["never predicted"])]
        entry = {
            "precision": float(hits / guesses) if guesses else None,
            "recall": float(hits / rows) if rows else None,
            "f1": float(2 * hits / (rows + guesses)) if rows + guesses else None,
            "support": int(rows),
        }
        entries.append(entry | ({"reason": "; ".join(reasons)} if reasons else {}))
    return {"per_class": entries, "confusion": confusion.tolist()}


class Summary(TypedDict):
    """Statistics of one score over `n` runs. std: sample standard deviation. reason: why a statistic is None."""

    n: int
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    reason: NotRequired[str]


def summary(values: Sequence[float | None]) -> Summary:
    """Return mean, sample standard deviation (n - 1), minimum and maximum of one score over several runs.

    If a run has no score, all statistics are None, because a mean without this run could be too high.
    """
    known = [float(value) for value in values if value is not None]
    result: Summary = {"n": len(values), "mean": None, "std": None, "min": None, "max": None}
    if not values:
        return {**result, "reason": "there is no run"}
    if len(known) < len(values):
        return {**result, "reason": f"{len(values) - len(known)} of {len(values)} runs have no value"}
    mean = math.fsum(known) / len(known)
    result = {**result, "mean": mean, "min": min(known), "max": max(known)}
    if len(known) == 1:
        return {**result, "reason": ONE_RUN}
    return {**result, "std": math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))}


def ranking_score(metric: str, true: Targets, predicted: Targets) -> float | None:
    """Return the value of `metric`, or None if the metric is undefined for these rows. true, predicted: [rows]."""
    try:
        return METRICS[metric].compute(true, predicted)
    except Undefined:
        return None


def better(score: float | None, than: float | None) -> bool:
    """Return whether `score` is higher than `than`. None is lower than every score."""
    return score is not None and (than is None or score > than)


def rank(validation: Mapping[str, float | None]) -> tuple[bool, float]:
    """Return a sort key for a model: a better model has a higher key. validation: the model's `score` and `loss`.

    The score can be undefined, for example if the model predicts the same number for all texts. A model with a score
    is better than a model without a score. Of two models without a score, the model with the lower loss is better.
    """
    score, loss = validation["score"], validation["loss"]
    if score is not None:
        return True, score
    assert loss is not None
    return False, -loss


def best_of(scores: Sequence[float | None]) -> int:
    """Return the index of the highest score. In a tie, return the lowest index. None is lower than every score."""
    return max(range(len(scores)), key=lambda number: (scores[number] is not None, scores[number] or 0.0))


def chance_in_words(difference: float, spreads: Sequence[float | None]) -> str:
    """Return a warning if a difference may be chance, else "". spreads: the spread of each score; None for one seed."""
    known = [spread for spread in spreads if spread is not None]
    if len(known) < len(spreads):
        return "With one seed, chance cannot be estimated. Use at least three seeds."
    if abs(difference) <= max(known):
        return f"The difference is within one standard deviation ({max(known):.4f}), so it may be chance."
    return ""
