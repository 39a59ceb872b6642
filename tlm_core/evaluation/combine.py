"""The combination of a linear model and encoders, and the choice of the model that a job returns.

A linear model and an encoder make different errors. So the weighted mean of their log-probabilities is often better
than either model. The mean of the encoders of several seeds is often better than one encoder. Temperatures make the
log-probabilities comparable (Guo et al. 2017, arXiv 1706.04599).
This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """Weights (`linear`, `encoder`; sum 1) and temperatures of two models. A model with the weight 0 is not used."""

    linear: float = 0.0
    encoder: float = 1.0
    linear_temperature: float = 1.0
    encoder_temperature: float = 1.0

    @classmethod
    def of_linear(cls, temperature: float) -> Scales:
        """Return the weights and the temperature of a linear model without an encoder."""
        return cls(linear=1.0, encoder=0.0, linear_temperature=temperature)

    def combine(self, task_type: TaskType, linear: Outputs, encoder: Outputs) -> Outputs:
        """Return the same outputs as the ONNX graph of the combination. linear, encoder: outputs for the same rows."""
        parts = [linear / np.float32(self.linear_temperature), encoder / np.float32(self.encoder_temperature)]
        if not (self.linear and self.encoder):
            return parts[0] if self.linear else parts[1]
        if task_type.has_classes:
            parts = [log_softmax(part) for part in parts]
        return np.float32(self.linear) * parts[0] + np.float32(self.encoder) * parts[1]


def average(task_type: TaskType, encoders: Sequence[Outputs]) -> Outputs:
    """Return the mean of the encoders' log-probabilities, [rows, labels], or of their regression targets, [rows, 1]."""
    parts = [log_softmax(outputs) for outputs in encoders] if task_type.has_classes else encoders
    return np.mean(np.stack(parts), axis=0, dtype=np.float32)


def log_softmax(logits: NDArray[Real]) -> NDArray[Real]:
    """Return the log-probabilities [rows, labels] of logits [rows, labels]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(logits: Outputs) -> Outputs:
    """Return the probabilities [rows, labels] of logits [rows, labels]."""
    return np.exp(log_softmax(logits))


def loss(task_type: TaskType, outputs: Outputs, targets: Targets) -> float:
    """Return the mean negative log-likelihood for classification, or the mean squared error for regression."""
    if task_type.has_classes:
        chosen = log_softmax(outputs)[np.arange(len(targets)), targets.astype(np.int64)]
        return -float(chosen.mean(dtype=np.float64))  # the rounding of a 32-bit mean would move the best temperature
    return float(((outputs[:, 0] - targets.astype(np.float64)) ** 2).mean())


def temperature(task_type: TaskType, outputs: Outputs, targets: Targets) -> float:
    """Return the temperature: the most probable divisor of the logits, or 1 for regression or without rows.

    The logarithm of the temperature has a standard normal prior. Without this prior, a few correct rows would make all
    outputs certain. The search covers e^-8 to e^4, because a linear model with many labels can need a tiny divisor.
    """
    if not task_type.has_classes or not len(targets):
        return 1.0
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped, unused-ignore]

    def objective(logarithm: float) -> float:
        prior = logarithm**2 / (2 * len(targets))
        return loss(task_type, outputs / np.float32(np.exp(logarithm)), targets) + prior

    return float(np.exp(minimize_scalar(objective, bounds=(-8.0, 4.0), method="bounded").x))


def scales_of(model: str, task_type: TaskType, linear: Outputs, encoder: Outputs, targets: Targets) -> Scales:
    """Return the temperatures and weights of `model`, one of MODELS, fitted to the outputs and targets of the rows.

    Each temperature is fitted to the outputs of one model. The weights of `combined` are equal. `weighted` has the pair
    of weights with the lowest loss on these rows.
    """
    if model in LINEAR_MODELS:
        return Scales.of_linear(temperature(task_type, linear, targets))
    encoder_temperature = temperature(task_type, encoder, targets)
    if model in ENCODERS:
        return Scales(encoder_temperature=encoder_temperature)
    scales = Scales(0.5, 0.5, temperature(task_type, linear, targets), encoder_temperature)
    if model == COMBINED:
        return scales
    choices = [replace(scales, linear=round(1 - weight, 1), encoder=weight) for weight in WEIGHTS]
    return min(choices, key=lambda choice: loss(task_type, choice.combine(task_type, linear, encoder), targets))


@dataclass(frozen=True)
class Choice:
    """The model that a job returns. scores, losses: model → its score and loss on validation; see `choose`."""

    model: str
    reason: str  # one sentence
    scores: Mapping[str, float | None] = field(default_factory=dict)  # None if the metric is undefined on the rows
    losses: Mapping[str, float] = field(default_factory=dict)


def choose(
    task: Task, linears: Mapping[str, Outputs], encoder: str, encoders: Sequence[Outputs], targets: Targets
) -> Choice:
    """Return the choice among linear models, encoder and combinations by their losses on validation.

    A random division cuts the validation rows into halves. The `Scales` for each half are fitted on the other half. A
    score or loss is the mean over SPLITS divisions and all seeds. The choice is the simplest model whose loss exceeds
    the lowest loss by at most one standard error. Exceptions: if the task's metric is undefined on the rows, the choice
    is `combined`, without scores and losses. Otherwise, with fewer than ROWS_TO_CHOOSE rows, the choice is `weighted`.
    linears: model → outputs on validation. Combinations use the last linear model. encoder: `encoder` or `ensemble`.
    encoders: outputs on validation of each seed's encoder, or only of the ensemble.
    """
    last = list(linears.values())[-1]
    models = [model for model in MODELS if model in (*linears, encoder, COMBINED, WEIGHTED)]
    try:
        divisions = {model: _cross_fitted(task, model, linears.get(model, last), encoders, targets) for model in models}
    except Undefined as error:
        return Choice(COMBINED, f"Validation cannot decide: {error}.", dict.fromkeys(models))
    losses, scores = ({model: float(divisions[model][:, kind].mean()) for model in models} for kind in (0, 1))
    if len(targets) < ROWS_TO_CHOOSE:
        reason = f"Validation has {len(targets)} rows, too few to compare models. A combination is the safest choice."
        return Choice(WEIGHTED, reason, scores, losses)
    best = min(models, key=lambda model: losses[model])
    for model in models[: models.index(best)]:
        within = float(np.std((divisions[model] - divisions[best])[:, 0], ddof=1)) / math.sqrt(SPLITS)
        if losses[model] - losses[best] <= within + ROUNDING:
            reason = (
                f"On validation, its loss is {losses[model]:.4f}, and that of {model_in_words(best)} is "
                f"{losses[best]:.4f}. The difference is within one standard error ({within:.4f}), so the simpler "
                "model is returned."
            )
            return Choice(model, reason, scores, losses)
    return Choice(best, f"It has the lowest loss on validation ({losses[best]:.4f}).", scores, losses)


def _cross_fitted(
    task: Task, model: str, linear: Outputs, encoders: Sequence[Outputs], targets: Targets
) -> NDArray[np.float64]:
    """Return a model's loss and score for each random division, [SPLITS, 2]. Each value is the mean over seeds.

    The `Scales` for each half of the rows are fitted on the other half. Raises Undefined if the score is undefined.
    """
    compute = METRICS[task.metric].compute
    measured = []
    for encoder in encoders[:1] if model in LINEAR_MODELS else encoders:  # seeds do not change a linear model
        for halves in _halves(len(targets)):
            outputs = np.zeros_like(encoder)
            for fitted, tested in (halves, halves[::-1]):
                scales = scales_of(model, task.type, linear[fitted], encoder[fitted], targets[fitted])
                outputs[tested] = scales.combine(task.type, linear[tested], encoder[tested])
            measured.append((loss(task.type, outputs, targets), compute(targets, task.type.predict(outputs))))
    return np.mean(np.reshape(measured, (-1, SPLITS, 2)), axis=0)


def _halves(rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    random = np.random.default_rng(0)
    for _ in range(SPLITS):
        order = random.permutation(rows)
        yield order[: rows // 2], order[rows // 2 :]
