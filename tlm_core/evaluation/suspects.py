"""Suspect labels: rows whose given label is less probable than another label.

The probabilities come from a linear model that did not see the row (confident learning, Northcutt et al. 2021, arXiv
1911.00068). They also depend on the labels of adjacent rows. Texts of one document often follow each other in a file,
and their labels have a pattern, such as background before results. docs/experiments.md compares rankings.
This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlm_core.evaluation.combine import Outputs, log_softmax
from tlm_core.tasks.task import Task

LISTED = 2_000
OFFSETS = (-2, -1, 1, 2)  # places of the neighbors in the file, relative to a row
GAIN = 0.01  # the model uses neighbors only if they lower the loss by more than this share
SORTED = 0.75  # agreement of adjacent rows above which a file counts as sorted by label
SMOOTHING = 10.0  # pseudo-rows with the overall label distribution, added to the counts for each neighbor label
RIDGE = 1e-3
FITTED_ROWS = 20_000  # more rows hardly change the few parameters
_CELLS = 4_000_000  # rows times labels that are computed at once

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Rows with their given labels."""

    outputs: Outputs  # logits [rows, labels] of a model that did not see the rows
    labels: Ints  # [rows]
    numbers: Ints  # [rows], the numbers of the rows in the file
    counted: bool  # whether `LabelModel.transitions` include these rows; True only for train

    @classmethod
    def of(cls, task: Task, name: str, outputs: Outputs) -> Split:
        """Return the split `name` of a task with classes."""
        return cls(outputs, task.label_ids(name).astype(np.int64), task.rows(name), counted=name == "train")

    @cached_property
    def neighbors(self) -> Ints:
        """Indices in the split of each row's neighbors at OFFSETS in the file, [offsets, rows]; -1: no such row."""
        order = np.argsort(self.numbers, kind="stable")
        wanted = self.numbers + np.array(OFFSETS)[:, None]
        nearest = order[np.searchsorted(self.numbers[order], wanted).clip(max=len(order) - 1)]
        return np.where(self.numbers[nearest] == wanted, nearest, -1)

    @property
    def rows_at_once(self) -> int:
        return max(1, _CELLS // self.outputs.shape[1])


@dataclass(frozen=True)
class LabelModel:
    """A model of each label's probability from a row's outputs and, with `transitions`, the labels of its neighbors."""

    weights: Floats  # [1 + offsets], for the arrays that `features` returns
    bias: Floats  # [labels]
    transitions: tuple[Floats, ...]  # for each offset, counts of adjacent labels in train, [neighbor's label, label]
    frequencies: Floats  # [labels], shares of the labels in train

    @classmethod
    def fit(cls, train: Split) -> LabelModel:
        """Fit the model on the train rows.

        The model ignores the neighbors if they lower the loss by less than 1 %. It also ignores them in a file that is
        sorted by label, because there the neighbors predict every given label, even a wrong label.
        """
        count = train.outputs.shape[1]
        frequencies = (np.bincount(train.labels, minlength=count) + 0.5) / (len(train.labels) + 0.5 * count)
        alone, loss = _fitted(train, (), frequencies)
        if _adjacent_agreement(train) > SORTED:
            return alone
        transitions = []
        for places in train.neighbors:
            counts = np.zeros((count, count))
            np.add.at(counts, (train.labels[places[places >= 0]], train.labels[places >= 0]), 1)
            transitions.append(counts)
        model, with_neighbors = _fitted(train, tuple(transitions), frequencies)
        return model if with_neighbors < (1 - GAIN) * loss else alone

    def doubts(self, split: Split) -> tuple[Floats, Ints]:
        """Return two arrays [rows]: a score, and the index of the most probable label other than the given label.

        The score is the probability of the other label, given that one of the two labels is right.
        """
        scores, suggested = np.empty(len(split.labels)), np.empty(len(split.labels), np.int64)
        for start in range(0, len(scores), split.rows_at_once):
            rows = np.arange(start, min(start + split.rows_at_once, len(scores)))
            values = self.values(self.features(split, rows))
            given = (np.arange(len(rows)), split.labels[rows])
            margins = -values[given]
            values[given] = -np.inf
            suggested[rows] = values.argmax(axis=1)
            margins += values.max(axis=1)
            scores[rows] = np.exp(-np.logaddexp(0, -margins))
        return scores, suggested

    def values(self, features: Floats) -> Floats:
        """Return logits [rows, labels] from the result of `features`."""
        return np.tensordot(self.weights, features, 1) + self.bias

    def features(self, split: Split, rows: Ints) -> Floats:
        """Return the logits, and the log-probabilities given the label of each neighbor, [1 + offsets, rows, labels].

        The counts for a train row exclude the row itself. A missing neighbor gives the logarithms of `frequencies`.
        """
        features = np.empty((1 + len(self.transitions), len(rows), len(self.frequencies)))
        features[0] = split.outputs[rows]
        for counts, places, target in zip(self.transitions, split.neighbors[:, rows], features[1:], strict=False):
            target[:] = np.log(self.frequencies)
            present = np.flatnonzero(places >= 0)
            given = counts[split.labels[places[present]]]
            if split.counted:
                given[np.arange(len(present)), split.labels[rows[present]]] -= 1
            smoothed = given + SMOOTHING * self.frequencies
            target[present] = np.log(smoothed / (given.sum(axis=1, keepdims=True) + SMOOTHING))
        return features


def _fitted(train: Split, transitions: tuple[Floats, ...], frequencies: Floats) -> tuple[LabelModel, float]:
    """Return the model whose weights and bias have the lowest loss on the train rows, and this loss."""
    from scipy.optimize import minimize  # type: ignore[import-untyped, unused-ignore]

    most = min(FITTED_ROWS, train.rows_at_once)
    rows = np.arange(0, len(train.labels), max(1, len(train.labels) // most))
    size, bias = 1 + len(transitions), np.zeros(len(frequencies))
    start = LabelModel(np.eye(size)[0], bias, transitions, frequencies)
    features, given = start.features(train, rows), (np.arange(len(rows)), train.labels[rows])

    def objective(values: Floats) -> tuple[float, Floats]:
        logs = log_softmax(replace(start, weights=values[:size], bias=values[size:]).values(features))
        errors = np.exp(logs)
        errors[given] -= 1
        slope = np.concatenate([np.tensordot(features, errors, 2) / len(rows), errors.mean(axis=0)])
        return float(RIDGE * values @ values / 2 - logs[given].mean()), slope + RIDGE * values

    result = minimize(objective, np.concatenate([start.weights, bias]), jac=True, method="L-BFGS-B")
    return replace(start, weights=result.x[:size], bias=result.x[size:]), float(result.fun)


def _adjacent_agreement(split: Split) -> float:
    """Return how often adjacent rows have the same label, corrected for chance (Cohen's kappa)."""
    places = split.neighbors[OFFSETS.index(1)]
    labels, following = split.labels[places >= 0], split.labels[places[places >= 0]]
    if not len(labels):
        return 0.0
    first, second = (
        np.bincount(values, minlength=split.outputs.shape[1]) / len(labels) for values in (labels, following)
    )
    chance = float(first @ second)
    return (float((labels == following).mean()) - chance) / (1 - chance) if chance < 1 else 0.0


def rank_suspects(task: Task, outputs: Mapping[str, Outputs]) -> dict[str, Any]:
    """Return the rows of train and validation with suspect labels, most suspect first, as the report stores them.

    outputs: logits by split, from models that did not see the rows.
    neighbors: whether the ranking uses the labels of the rows beside a row. total: number of rows with a more probable
    label than the given label. rows: at most LISTED entries. An entry's `row` is a number in the split's file, and its
    `score` comes from `LabelModel.doubts`.
    """
    splits = {name: Split.of(task, name, outputs[name]) for name in ("train", "validation")}
    model = LabelModel.fit(splits["train"])
    rows: list[dict[str, Any]] = []
    total = 0
    for name, split in splits.items():
        scores, suggested = model.doubts(split)
        count = int((scores > 0.5).sum())
        total += count
        for place in np.argsort(-scores, kind="stable")[: min(LISTED, count)].tolist():
            row, score = int(split.numbers[place]), float(scores[place])
            given, better = task.labels[split.labels[place]], task.labels[suggested[place]]
            rows.append({"split": name, "row": row, "label": given, "suggested": better, "score": score})
    rows.sort(key=lambda row: -row["score"])
    return {"neighbors": bool(model.transitions), "total": total, "rows": rows[:LISTED]}
