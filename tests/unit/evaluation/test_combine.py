"""The combination of two models, the choice among them, and the paired bootstrap."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pytest

from tlm_core.evaluation.bootstrap import paired_difference
from tlm_core.evaluation.combine import (
    COMBINED,
    ENCODER,
    ENSEMBLE,
    LINEAR,
    WEIGHTED,
    Choice,
    Outputs,
    Scales,
    average,
    choose,
    log_softmax,
    loss,
    scales_of,
    temperature,
)
from tlm_core.tasks.limits import ROWS_TO_CHOOSE
from tlm_core.tasks.metrics import METRICS, SINGLE_LABEL, metrics_of
from tlm_core.tasks.task import Task, task_schema
from tlm_core.tasks.types import TASK_TYPES

CLASSES = TASK_TYPES["single_label"]
ROWS = 600


def noisy(targets: np.ndarray, noise: float, seed: int, strength: float = 1.0) -> Outputs:
    """Return logits that point to the target, with normal noise."""
    outputs = np.random.default_rng(seed).normal(0, noise, (len(targets), 3))
    outputs[np.arange(len(targets)), targets] += 1
    return (strength * outputs).astype(np.float32)


def chosen(linear: Outputs, *encoders: Outputs, name: str = ENCODER) -> Choice:
    """Choose on as many rows as the outputs have."""
    empty = pa.table({"row": [], "text": [], "label": []}, schema=task_schema(False))
    task = Task("t", ("a", "b", "c"), "macro_f1", False, "en", dict.fromkeys(("train", "validation", "test"), empty))
    return choose(task, {LINEAR: linear}, name, encoders, TARGETS[: len(linear)])


TARGETS = np.random.default_rng(0).integers(0, 3, ROWS)


def test_temperature_recovers_the_scale_of_overconfident_logits() -> None:
    targets = np.tile(TARGETS, 20)  # so many that the prior does not matter
    logits = noisy(targets, 1.0, 1)
    calibrated = temperature(CLASSES, logits, targets)
    assert temperature(CLASSES, 5 * logits, targets) == pytest.approx(5 * calibrated, rel=1e-3)
    assert loss(CLASSES, logits / np.float32(calibrated), targets) <= loss(CLASSES, logits, targets)


def test_a_few_correct_rows_do_not_make_a_model_certain() -> None:
    targets = np.array([0, 1, 0, 1, 2])
    logits = np.eye(3, dtype=np.float32)[targets]
    assert 0.1 < temperature(CLASSES, logits, targets) < 0.5


def test_small_logits_of_many_labels_get_the_temperature_that_fits() -> None:
    targets = np.arange(900) % 300
    logits = np.random.default_rng(0).normal(0, 0.004, (900, 300)).astype(np.float32)
    logits[np.arange(900), targets] += 0.04
    calibrated = temperature(CLASSES, logits, targets)
    confidence = np.exp(log_softmax(logits / np.float32(calibrated))).max(axis=1)
    assert calibrated < np.exp(-4) and confidence.min() > 0.95


@pytest.mark.parametrize(("predicted", "low", "high"), [([0, 1], 0.3, 1), ([1, 0], 1, 3)])
def test_two_rows_change_the_temperature_little(predicted: list[int], low: float, high: float) -> None:
    assert low < temperature(CLASSES, np.eye(2, dtype=np.float32)[predicted], np.array([0, 1])) < high


def test_outputs_that_are_always_wrong_become_uncertain() -> None:
    wrong = np.eye(3, dtype=np.float32)[(TARGETS + 1) % 3]
    assert 10 < temperature(CLASSES, wrong, TARGETS) < 60


def test_few_rows_choose_the_combination_with_fitted_weight() -> None:
    choice = chosen(*(noisy(TARGETS, 1.5, seed)[: ROWS_TO_CHOOSE - 1] for seed in (1, 2)))
    assert choice.model == WEIGHTED and set(choice.scores) == {LINEAR, ENCODER, COMBINED, WEIGHTED}
    assert choice.reason.startswith("Validation has 99 rows, too few to compare models.")


def test_combination_of_independent_models_is_chosen_over_either() -> None:
    choice = chosen(noisy(TARGETS, 1.5, 1), noisy(TARGETS, 1.5, 2, strength=20))
    assert choice.model == COMBINED
    assert choice.scores[COMBINED] > max(choice.scores[LINEAR], choice.scores[ENCODER]) + 0.03


def test_simpler_model_wins_a_tie() -> None:
    linear = noisy(TARGETS, 1.0, 1)
    assert chosen(linear, linear).model == LINEAR


def test_simpler_model_wins_within_one_standard_error() -> None:
    choice = chosen(noisy(TARGETS, 0.8, 102), noisy(TARGETS, 1.0, 202))
    assert choice.model == COMBINED and choice.losses[WEIGHTED] < choice.losses[COMBINED]
    assert choice.reason.endswith("within one standard error (0.0004), so the simpler model is returned.")


def test_error_of_the_choice_is_that_of_the_splits() -> None:
    """The gain of the combination over the linear model is smaller than the standard error over rows."""
    linear, encoder = noisy(TARGETS, 1.0, 1), noisy(TARGETS, 3.0, 5)
    choice = chosen(linear, encoder)
    both = scales_of(WEIGHTED, CLASSES, linear, encoder, TARGETS).combine(CLASSES, linear, encoder)
    parts = (-log_softmax(outputs)[np.arange(ROWS), TARGETS] for outputs in (linear, both))
    error = np.std(np.subtract(*parts), ddof=1) / np.sqrt(ROWS)
    assert choice.model == WEIGHTED and 0 < choice.losses[LINEAR] - choice.losses[WEIGHTED] < error


def test_model_with_lower_loss_wins_over_one_with_higher_score() -> None:
    choice = chosen(noisy(TARGETS, 1.0, 102), noisy(TARGETS, 1.5, 202))
    assert choice.model == WEIGHTED and choice.scores[WEIGHTED] < choice.scores[COMBINED]
    assert choice.reason == f"It has the lowest loss on validation ({choice.losses[WEIGHTED]:.4f})."


def test_undefined_validation_score_chooses_equal_weights() -> None:
    tables = dict.fromkeys(("train", "validation", "test"), pa.table({"row": [], "text": [], "label": []}))
    task = Task("t", ("bad", "good"), "f1", False, "en", tables)
    choice = choose(task, {LINEAR: np.eye(2)[TARGETS % 2]}, ENCODER, [np.eye(2)[TARGETS % 2]], np.zeros(ROWS, int))
    assert (choice.model, choice.losses) == (COMBINED, {}) and set(choice.scores.values()) == {None}
    assert choice.reason.startswith("Validation cannot decide: ")


def test_clearly_better_encoder_is_returned_over_a_useless_linear_model() -> None:
    choice = chosen(noisy(TARGETS, 50.0, 1), noisy(TARGETS, 0.7, 2), noisy(TARGETS, 0.7, 3))
    assert choice.model == ENCODER
    assert choice.scores[ENCODER] > choice.scores[LINEAR] + 0.2


def test_ensemble_is_better_than_its_members() -> None:
    members = [noisy(TARGETS, 1.5, seed, strength) for seed, strength in ((1, 1), (2, 20), (3, 5))]
    accuracies = [float((outputs.argmax(1) == TARGETS).mean()) for outputs in members]
    ensemble = average(CLASSES, members)
    np.testing.assert_allclose(ensemble, np.mean([log_softmax(outputs) for outputs in members], axis=0), rtol=1e-5)
    assert (ensemble.argmax(1) == TARGETS).mean() > max(accuracies) + 0.03
    choice = chosen(noisy(TARGETS, 50.0, 5), ensemble, name=ENSEMBLE)
    assert choice.model == ENSEMBLE and ENCODER not in choice.scores


def test_ensemble_of_a_regression_is_the_mean_target() -> None:
    regression = next(kind for kind in TASK_TYPES.values() if not kind.has_classes)
    outputs = [np.float32([[1.0], [2.0]]), np.float32([[3.0], [4.0]])]
    assert average(regression, outputs).tolist() == [[2.0], [3.0]]


def test_weighted_combination_learns_the_weight_of_the_better_model() -> None:
    linear, encoder = noisy(TARGETS, 4.0, 1), noisy(TARGETS, 0.7, 2)
    assert scales_of(WEIGHTED, CLASSES, linear, encoder, TARGETS).encoder > 0.5
    assert scales_of(COMBINED, CLASSES, linear, encoder, TARGETS).encoder == 0.5


def test_combination_is_the_weighted_sum_of_log_probabilities() -> None:
    linear, encoder = noisy(TARGETS, 1, 1), noisy(TARGETS, 1, 2)
    combined = Scales(0.3, 0.7, 2.0, 4.0).combine(CLASSES, linear, encoder)
    np.testing.assert_allclose(combined, 0.3 * log_softmax(linear / 2) + 0.7 * log_softmax(encoder / 4), rtol=1e-5)
    np.testing.assert_allclose(Scales(1.0, 0.0, 2.0, 4.0).combine(CLASSES, linear, encoder), linear / 2)


def test_bootstrap_interval_contains_zero_for_equal_and_not_for_unequal_models() -> None:
    good, bad = (noisy(TARGETS, noise, 1).argmax(1) for noise in (0.7, 2.0))
    same = paired_difference("macro_f1", TARGETS, [good], [good])
    other = paired_difference("macro_f1", TARGETS, [good], [bad])
    assert same is not None and (same.value, same.low, same.high) == (0, 0, 0) and not same.distinguishable
    assert other is not None and other.low < other.value < other.high and other.distinguishable
    assert (same.verdict, other.verdict) == ("not distinguishable", "better")


def test_bootstrap_has_no_value_where_the_metric_has_none() -> None:
    assert paired_difference("pearson", np.zeros(3), [np.arange(3.0)], [np.arange(3.0)]) is None


def test_single_positive_row_cannot_prove_a_difference_in_f1() -> None:
    targets = np.arange(100) == 0
    first, second = np.arange(100) < 2, np.arange(100) < 20
    difference = paired_difference("f1", targets, [first], [second])
    assert difference is not None and difference.value > 0.5
    assert difference.low == 0 and not difference.distinguishable


@pytest.mark.parametrize("metric", ["macro_f1", "micro_f1", "accuracy"])
def test_bootstrap_computes_the_reported_metric(metric: str) -> None:
    first, second = TARGETS.copy(), np.where(TARGETS == 2, 0, TARGETS)  # the second model never predicts label 2
    first[:50] = 4  # the first predicts a label that no row has
    difference = paired_difference(metric, TARGETS, [first], [second])
    compute = METRICS[metric].compute
    assert difference is not None
    assert difference.value == pytest.approx(compute(TARGETS, first) - compute(TARGETS, second), abs=1e-12)


@pytest.mark.parametrize("metric", metrics_of(SINGLE_LABEL))
def test_bootstrap_of_labels_needs_no_scikit_learn(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)  # Its functions take milliseconds for each resample.
    assert paired_difference(metric, TARGETS, [TARGETS], [TARGETS[::-1]]) is not None


def test_bootstrap_of_an_empty_split_has_no_value() -> None:
    assert paired_difference("macro_f1", TARGETS[:0], [TARGETS[:0]], [TARGETS[:0]]) is None
