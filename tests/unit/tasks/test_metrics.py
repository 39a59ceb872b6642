"""Scores agree with scikit-learn and never pretend."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.unit.tasks.make import folder, rows
from tlm_core.errors import InvalidRequest
from tlm_core.tasks.metrics import (
    METRICS,
    SINGLE_LABEL,
    Metric,
    better,
    rank,
    ranking_score,
    score,
    scores_shown,
    summary,
)
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.types import TASK_TYPES
from tlm_core.tasks.validate import load_task


def test_scores_agree_with_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    rng = np.random.RandomState(3)
    true = rng.randint(0, 5, 200)
    pred = np.where(rng.rand(200) < 0.6, true, rng.randint(0, 5, 200))
    result = score(true, pred, 5, "macro_f1")
    assert result["macro_f1"] == pytest.approx(f1_score(true, pred, average="macro"))
    assert result["micro_f1"] == pytest.approx(f1_score(true, pred, average="micro"))
    assert result["accuracy"] == pytest.approx(accuracy_score(true, pred))
    assert result["confusion"] == confusion_matrix(true, pred).tolist()
    per_class = np.array(precision_recall_fscore_support(true, pred)).T
    got = [[entry[key] for key in ("precision", "recall", "f1", "support")] for entry in result["per_class"]]
    np.testing.assert_allclose(got, per_class)


@pytest.mark.filterwarnings("ignore")  # scikit-learn warns about a single label
@pytest.mark.parametrize("labels", [1, 2, 5])
def test_each_metric_of_labels_equals_scikit_learn(labels: int) -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    expected = {
        "macro_f1": partial(f1_score, average="macro"), "micro_f1": partial(f1_score, average="micro"),
        "accuracy": accuracy_score, "f1": f1_score, "matthews": matthews_corrcoef,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    for name, function in expected.items():
        for count in rng.integers(1, 30, 60):
            true, predicted = (rng.integers(0, rng.integers(1, labels + 1), count) for _ in range(2))
            if name == "f1":
                true, predicted = true == 1, predicted == 1
            assert ranking_score(name, true, predicted) == (
                None if name == "f1" and not true.any() else pytest.approx(function(true, predicted), abs=1e-12)
            )


def test_matthews_of_many_rows_does_not_overflow() -> None:
    true = np.arange(200_000) % 2
    assert ranking_score("matthews", true, true) == pytest.approx(1.0)


def test_value_is_the_requested_metric() -> None:
    true, pred = [0, 0, 0, 1], [0, 0, 0, 0]
    assert score(true, pred, 2, "accuracy")["value"] == 0.75
    assert score(true, pred, 2, "macro_f1")["value"] == pytest.approx((6 / 7 + 0) / 2)


def test_absent_class_is_null_with_a_reason_and_not_in_the_mean() -> None:
    result = score([0, 1], [0, 1], 3, "macro_f1")
    assert result["macro_f1"] == 1.0
    assert result["per_class"][2] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "support": 0,
        "reason": "no row has it; never predicted",
    }


def test_a_class_never_predicted_counts_as_zero_f1() -> None:
    result = score([0, 1], [0, 0], 2, "macro_f1")
    assert result["per_class"][1]["precision"] is None
    assert result["per_class"][1]["f1"] == 0.0
    assert result["macro_f1"] == pytest.approx(1 / 3)


def test_deduplicated_score_ignores_rows_that_are_in_train() -> None:
    result = score([0, 0, 1, 1], [0, 1, 1, 1], 2, "accuracy", repeated=np.array([False, True, False, True]))
    assert result["accuracy"] == 0.75
    assert result["deduplicated"]["accuracy"] == 1.0
    assert result["deduplicated"]["rows"] == 2
    assert result["deduplicated"]["rows_left_out"] == 2


def test_score_without_rows_is_null() -> None:
    result = score([0], [0], 2, "macro_f1", repeated=np.array([True]))
    assert result["deduplicated"]["value"] is None
    assert result["deduplicated"]["reason"] == "there is no row to score"


@pytest.mark.parametrize(
    ("true", "pred", "metric", "part"),
    [
        ([0, 1], [0], "macro_f1", "same shape"),
        ([0, 2], [0, 1], "macro_f1", r"0\.\.1"),
        ([0, 1], [0, -1], "macro_f1", r"0\.\.1"),
        ([0, 1], [0, 1], "f2", "Unknown metric"),
    ],
)
def test_invalid_scoring_input_is_rejected(true: list[int], pred: list[int], metric: str, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        score(true, pred, 2, metric)


def test_majority_baseline_answers_the_most_frequent_train_label() -> None:
    result = TASK_TYPES["single_label"].baseline(
        [2, 1, 2, 0], [2, 0, 2, 1], 3, "accuracy", repeated=np.array([True, False, False, False])
    )
    assert result["label"] == 2
    assert result["accuracy"] == 0.5
    assert result["deduplicated"]["accuracy"] == pytest.approx(1 / 3)


def test_summary_uses_the_sample_standard_deviation() -> None:
    assert summary([0.5, 0.7, 0.9]) == pytest.approx({"n": 3, "mean": 0.7, "std": 0.2, "min": 0.5, "max": 0.9})


def test_summary_of_one_seed_has_no_spread_and_says_why() -> None:
    assert summary([0.5]) == {
        "n": 1,
        "mean": 0.5,
        "std": None,
        "min": 0.5,
        "max": 0.5,
        "reason": "one run has no spread",
    }


@pytest.mark.parametrize(("values", "reason"), [([], "no run"), ([0.5, None], "1 of 2 runs have no value")])
def test_summary_without_values_is_null_with_its_reason(values: list[float | None], reason: str) -> None:
    result = summary(values)
    assert result["mean"] is None
    assert reason in result["reason"]


def test_matthews_and_f1_of_one_label_agree_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score, matthews_corrcoef

    rng = np.random.RandomState(4)
    for labels in (2, 4):
        true, pred = rng.randint(0, labels, 100), rng.randint(0, labels, 100)
        assert score(true, pred, labels, "matthews")["value"] == pytest.approx(matthews_corrcoef(true, pred))
    true, pred = rng.randint(0, 2, 100), rng.randint(0, 2, 100)
    assert score(true, pred, 2, "f1")["value"] == pytest.approx(f1_score(true, pred))
    assert score(true, np.zeros(100, int), 2, "matthews")["value"] == 0.0
    nothing = score([0, 0], [0, 0], 2, "f1")
    assert nothing["value"] is None and "no row has the positive label" in nothing["reason"]


def test_correlations_agree_with_scipy_and_repeated_rows_are_left_out() -> None:
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.RandomState(5)
    true = rng.randint(0, 6, 80).astype(float)  # with ties
    pred = true + rng.randn(80)
    repeated = rng.rand(80) < 0.3
    scores = score(true, pred, 1, "spearman", repeated=repeated)
    assert scores["pearson"] == pytest.approx(pearsonr(true, pred)[0])
    assert scores["value"] == scores["spearman"] == pytest.approx(spearmanr(true, pred)[0])
    assert scores["deduplicated"]["value"] == pytest.approx(spearmanr(true[~repeated], pred[~repeated])[0])
    assert scores["accuracy"] is None


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_correlation_with_infinite_predictions_is_null_with_a_reason(odd: float) -> None:
    scores = score(
        np.array([1.0, 2.0, 3.0]), np.array([1.0, odd, 2.0]), 1, "spearman", repeated=np.array([False, True, False])
    )
    assert (scores["value"], scores["pearson"], scores["spearman"]) == (None, None, None)
    assert scores["reason"] == "1 of 3 predictions are not finite numbers"
    assert scores["deduplicated"]["value"] == pytest.approx(1.0)


def test_correlation_with_a_constant_is_null_with_a_reason() -> None:
    scores = score([1.0, 2.0], [3.0, 3.0], 1, "pearson")
    assert scores["value"] is None and "differ" in scores["reason"]
    assert better(0.0, None) and not better(None, None) and not better(0.1, 0.1)


def test_f1_without_the_positive_label_ranks_no_models() -> None:
    negative, mixed = np.array([0, 0, 0]), np.array([0, 1, 0])
    assert ranking_score("f1", negative, negative) is None and ranking_score("f1", negative, mixed) is None
    assert ranking_score("f1", mixed, mixed) == 1.0 and ranking_score("f1", mixed, negative) == 0.0
    assert ranking_score("accuracy", negative, mixed) == pytest.approx(2 / 3)
    assert ranking_score("pearson", np.array([1.0, 2.0]), np.array([3.0, 3.0])) is None


def test_models_without_a_score_rank_by_loss() -> None:
    without, scored = [{"score": None, "loss": loss} for loss in (0.1, 0.5)], {"score": 0.0, "loss": 2.0}
    assert rank(scored) > rank(without[0]) > rank(without[1])


def test_new_metric_needs_one_entry_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlm_core.evaluation.report import over_seeds

    with pytest.raises(InvalidRequest, match="Unknown metric 'first_label'"):
        DatasetOptions(metric="first_label")
    toy = Metric("first_label", "share of label 0", SINGLE_LABEL, lambda _, predicted: (predicted == 0).mean())
    monkeypatch.setitem(METRICS, toy.name, toy)
    task, report = load_task(folder(tmp_path, rows(20)), DatasetOptions(metric="first_label"))
    assert report["ok"] and task.metric == "first_label" and task.type is TASK_TYPES[SINGLE_LABEL]
    scores = score(task.targets("test"), np.zeros(4, int), 2, task.metric, repeated=task.repeated("test"))
    assert scores["value"] == scores["first_label"] == 1.0 and scores["accuracy"] == 0.5
    assert scores_shown("first_label") == ("macro_f1", "micro_f1", "accuracy", "first_label")
    assert over_seeds([{"validation": scores, "test": scores}])["mean"]["test"]["first_label"] == 1.0
