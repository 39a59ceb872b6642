"""Task types: the targets of rows, and their effects on training, scores and reports.

A task type describes targets only. Whether a row has one text or a pair is a property of the task (`Task.pair`).
A new type is a subclass here, an entry of `TASK_TYPES`, a loss in `tlm_core.training.objective.LOSSES` and a column
reader in `tlm_core.tasks.targets`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tlm_core.tasks import metrics
from tlm_core.tasks.metrics import Targets


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of the train targets, to standardize targets. deviation: 1 if all are equal."""

    mean: float
    deviation: float

    def standardize(self, targets: Targets) -> NDArray[np.float32]:
        return ((targets.astype(np.float64) - self.mean) / self.deviation).astype(np.float32)


class TaskType(ABC):
    """What a task predicts for each row: a label or a number.

    name: word in `labels.json` and in errors. target: word for one target. model: word for a trained model.
    loss: key of `tlm_core.training.objective.LOSSES`. default_metric: metric if the user sets none.
    has_classes: whether targets are label indices. If not, the task's only label is the name of the regression target.
    stored, trained: NumPy types of targets in task files and in training.
    problem_type: value of this key in the configuration of `transformers`; None omits the key.
    baseline_title: name of the constant prediction in reports; None if such a prediction has no score.
    """

    name: ClassVar[str]
    target: ClassVar[str]
    model: ClassVar[str]
    loss: ClassVar[str]
    default_metric: ClassVar[str]
    has_classes: ClassVar[bool]
    stored: ClassVar[DTypeLike]
    trained: ClassVar[DTypeLike]
    problem_type: ClassVar[str | None] = None
    baseline_title: ClassVar[str | None] = None

    def scaling(self, targets: Targets) -> Scaling | None:  # noqa: ARG002 - classes are not scaled
        """Return the scaling of the train targets [rows], or None if training uses them unchanged."""
        return None

    @abstractmethod
    def predict(self, logits: NDArray[np.float32]) -> Targets:
        """Return the predicted targets [rows] from logits [rows, outputs]."""

    @abstractmethod
    def constant(self, targets: Targets) -> float:
        """Return the best constant prediction, given the train targets [rows]."""

    @abstractmethod
    def output_section(self, labels: Sequence[str]) -> list[str]:
        """Return the lines of the model card's section about the outputs of the model. labels: escaped for Markdown."""

    def baseline(
        self, train: Targets, true: Targets, n_labels: int, metric: str, *, repeated: NDArray[np.bool_] | None = None
    ) -> dict[str, object]:
        """Return the scores of the best constant prediction (see `metrics.score`) and, for classes, its `label` index.

        Raises ValueError if train has no row.
        """
        if not len(train):
            raise ValueError("The baseline needs at least one train row.")
        constant = self.constant(train)
        scores = metrics.score(true, np.full(len(true), constant), n_labels, metric, repeated=repeated)
        return {**scores, "label": constant} if self.has_classes else scores


class SingleLabel(TaskType):
    """Classification: the target of a row is one of several labels."""

    name = metrics.SINGLE_LABEL
    target = "label"
    model = "classifier"
    loss = "cross_entropy"
    default_metric = "macro_f1"
    has_classes = True
    stored = np.int32
    trained = np.int64
    baseline_title = "always the most frequent label"

    def predict(self, logits: NDArray[np.float32]) -> Targets:
        return logits.argmax(axis=1)

    def constant(self, targets: Targets) -> int:
        """Return the index of the most frequent label. In a tie, return the lowest."""
        return int(np.bincount(np.asarray(targets, dtype=np.int64)).argmax())

    def output_section(self, labels: Sequence[str]) -> list[str]:
        return ["## Labels", *(f"{number}. {label}" for number, label in enumerate(labels))]


class Regression(TaskType):
    """Regression: the target of a row is a number. A constant prediction has no score: correlation needs variance."""

    name = metrics.REGRESSION
    target = "regression target"
    model = "regression model"
    loss = "mse"
    default_metric = "pearson"
    has_classes = False
    stored = np.float64
    trained = np.float32
    problem_type = "regression"

    def scaling(self, targets: Targets) -> Scaling:
        targets = targets.astype(np.float64)
        return Scaling(float(targets.mean()), float(targets.std()) or 1.0)

    def predict(self, logits: NDArray[np.float32]) -> Targets:
        return logits[:, 0]

    def constant(self, targets: Targets) -> float:
        return float(np.asarray(targets, dtype=np.float64).mean())

    def output_section(self, labels: Sequence[str]) -> list[str]:
        return ["## Output", f"One number for each text, '{labels[0]}': the model's only output (regression)."]


TASK_TYPES: Mapping[str, TaskType] = {task_type.name: task_type for task_type in (SingleLabel(), Regression())}


def task_type_of(metric: str) -> TaskType:
    """Return the task type whose targets a metric compares."""
    return TASK_TYPES[metrics.METRICS[metric].task_type]
