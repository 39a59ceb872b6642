"""The combination of a linear model and encoders, and the choice of the model that a job returns.

A linear model and an encoder make different errors, so the mean of their log-probabilities is often better than either
model. The mean of the encoders of several seeds is often better than one encoder. Temperatures make the
log-probabilities comparable (Guo et al. 2017, arXiv 1706.04599).
This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tlm_core.evaluation.summary import ENCODER, model_in_words
from tlm_core.tasks.limits import ROWS_TO_CHOOSE
from tlm_core.tasks.metrics import METRICS, Targets, Undefined
from tlm_core.tasks.task import Task
from tlm_core.tasks.types import TaskType

LINEAR, SELF_TRAINED, ENSEMBLE = "linear", "self_trained", "ensemble"
COMBINED, WEIGHTED = "combined", "weighted"
LINEAR_MODELS = (LINEAR, SELF_TRAINED)
ENCODERS = (ENCODER, ENSEMBLE)  # the encoder of one seed, and those of all seeds together
MODELS = (*LINEAR_MODELS, *ENCODERS, COMBINED, WEIGHTED)  # from simple to complex
SPLITS = 20
ROUNDING = 1e-9
WEIGHTS = tuple(number / 10 for number in range(1, 10))  # the encoder's weights that `weighted` chooses from

Outputs = NDArray[np.float32]  # logits [rows, labels], or predicted regression targets [rows, 1]
Real = TypeVar("Real", np.float32, np.float64)


@dataclass(frozen=True)
class Scales:
    """Weight and temperature of the linear model and of the encoder in a combination.

    For a single model, its weight is 1 and the weight of the other model is 0.
    """

    linear: float = 0.0
    encoder: float = 1.0
    linear_temperature: float = 1.0
    encoder_temperature: float = 1.0

    @classmethod
    def of_linear(cls, temperature: float) -> Scales:
        """Return the scales of a linear model alone."""
        return cls(linear=1.0, encoder=0.0, linear_temperature=temperature)

    def combine(self, task_type: TaskType, linear: Outputs, encoder: Outputs) -> Outputs:
        """Return the outputs of the combination, as its ONNX graph computes them."""
        parts = [linear / np.float32(self.linear_temperature), encoder / np.float32(self.encoder_temperature)]
        if not (self.linear and self.encoder):
            return parts[0] if self.linear else parts[1]
        if task_type.has_classes:
            parts = [log_softmax(part) for part in parts]
        return np.float32(self.linear) * parts[0] + np.float32(self.encoder) * parts[1]


def average(task_type: TaskType, encoders: Sequence[Outputs]) -> Outputs:
    """Return the outputs of an ensemble: the mean log-probabilities, or the mean regression targets."""
    parts = [log_softmax(outputs) for outputs in encoders] if task_type.has_classes else encoders
    return np.mean(np.stack(parts), axis=0, dtype=np.float32)


def log_softmax(logits: NDArray[Real]) -> NDArray[Real]:
    """Return log-probabilities of logits [rows, labels]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(logits: Outputs) -> Outputs:
    """Return probabilities of logits [rows, labels]."""
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True), np.float32)


def loss(task_type: TaskType, outputs: Outputs, targets: Targets) -> float:
    """Return the mean negative log-likelihood for classification, or the mean squared error for regression."""
    if task_type.has_classes:
        chosen = log_softmax(outputs)[np.arange(len(targets)), targets.astype(np.int64)]
        return -float(chosen.mean(dtype=np.float64))  # the rounding of a 32-bit mean would move the best temperature
    return float(((outputs[:, 0] - targets.astype(np.float64)) ** 2).mean())


def temperature(task_type: TaskType, outputs: Outputs, targets: Targets) -> float:
    """Return the most probable divisor of the logits. It is 1 for regression, and if there are no rows.

    Its logarithm has a standard normal prior. Without the prior, a few correct rows would make all outputs certain. The
    divisor lies between e^-8 and e^4: with many labels, the logits of a linear model can be 200 times too small.
    """
    if not task_type.has_classes or not len(targets):
        return 1.0
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped, unused-ignore]

    def objective(logarithm: float) -> float:
        prior = logarithm**2 / (2 * len(targets))
        return loss(task_type, outputs / np.float32(np.exp(logarithm)), targets) + prior

    return float(np.exp(minimize_scalar(objective, bounds=(-8.0, 4.0), method="bounded").x))


def scales_of(model: str, task_type: TaskType, linear: Outputs, encoder: Outputs, targets: Targets) -> Scales:
    """Return the scales of `model`, one of MODELS, fitted on the given rows.

    Each temperature minimizes the loss of the linear model or the encoder alone. For the model `weighted`, the weight
    of the encoder is fitted too.
    """
    scales = Scales(
        linear=float(model not in ENCODERS),
        encoder=float(model not in LINEAR_MODELS),
        linear_temperature=temperature(task_type, linear, targets),
        encoder_temperature=temperature(task_type, encoder, targets),
    )
    if model in (*LINEAR_MODELS, *ENCODERS):
        return scales
    if model == COMBINED:
        return replace(scales, linear=0.5, encoder=0.5)
    choices = [replace(scales, linear=round(1 - weight, 1), encoder=weight) for weight in WEIGHTS]
    return min(choices, key=lambda choice: loss(task_type, choice.combine(task_type, linear, encoder), targets))


@dataclass(frozen=True)
class Choice:
    """The model that a job returns."""

    model: str
    scores: Mapping[str, float | None]  # model → cross-fitted validation score, the mean over seeds, if there is one
    reason: str  # one sentence


def choose(
    task: Task, linears: Mapping[str, Outputs], encoder: str, encoders: Sequence[Outputs], targets: Targets
) -> Choice:
    """Return the choice among linear models, encoder and combinations by their validation scores.

    Scales are fitted on one half of the rows and scored on the other half, and vice versa, for SPLITS random divisions.
    The simplest model within one standard error of the best score is chosen. Exceptions: with fewer than
    ROWS_TO_CHOOSE rows, the choice is the combination with the fitted weight. Without a validation score, the choice
    is the combination with equal weights.
    linears: outputs of each linear model on validation, by name. Combinations use the last one. encoder: `encoder` or
    `ensemble`. encoders: outputs on validation, for each seed or for the ensemble.
    """
    compute = METRICS[task.metric].compute
    last = list(linears.values())[-1]
    models = [model for model in MODELS if model in (*linears, encoder, COMBINED, WEIGHTED)]
    try:
        by_split = {}
        for model in models:
            guesses = _cross_fitted(task.type, model, linears.get(model, last), encoders, targets)
            seeds = [[compute(targets, guess) for guess in of_seed] for of_seed in guesses]
            by_split[model] = np.broadcast_to(np.mean(seeds, axis=0), SPLITS)
    except Undefined as error:
        return Choice(COMBINED, dict.fromkeys(models), f"Validation cannot decide: {error}.")
    scores = {model: float(of_splits.mean()) for model, of_splits in by_split.items()}
    if len(targets) < ROWS_TO_CHOOSE:
        reason = f"Validation has {len(targets)} rows, too few to compare models. A combination is the safest choice."
        return Choice(WEIGHTED, scores, reason)
    best = max(models, key=lambda model: scores[model])
    for model in models[: models.index(best)]:
        within = float(np.std(by_split[best] - by_split[model], ddof=1)) / math.sqrt(SPLITS)
        if scores[best] - scores[model] <= within + ROUNDING:
            reason = (
                f"On validation, it has {scores[model]:.4f}, and {model_in_words(best)} has {scores[best]:.4f}. "
                f"The difference is within one standard error ({within:.4f}), so the simpler model is returned."
            )
            return Choice(model, scores, reason)
    return Choice(best, scores, "It has the best score on validation.")


def _cross_fitted(
    task_type: TaskType, model: str, linear: Outputs, encoders: Sequence[Outputs], targets: Targets
) -> Iterator[list[Targets]]:
    """Yield for each seed a list of the predictions [rows] in each random division into halves.

    For a row, the scales are fitted on the half without this row. A single model has one array for all divisions,
    because a temperature changes no prediction. A linear model has one list, because seeds do not change it.
    """
    if model in LINEAR_MODELS:
        yield [task_type.predict(linear)]
        return
    for encoder in encoders:
        if model in ENCODERS:
            yield [task_type.predict(encoder)]
            continue
        predictions = []
        for halves in _halves(len(targets)):
            outputs = np.zeros_like(encoder)
            for fitted, scored in (halves, halves[::-1]):
                scales = scales_of(model, task_type, linear[fitted], encoder[fitted], targets[fitted])
                outputs[scored] = scales.combine(task_type, linear[scored], encoder[scored])
            predictions.append(task_type.predict(outputs))
        yield predictions


def _halves(rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    random = np.random.default_rng(0)
    for _ in range(SPLITS):
        order = random.permutation(rows)
        yield order[: rows // 2], order[rows // 2 :]
