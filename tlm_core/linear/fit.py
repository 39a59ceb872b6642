"""Fit a linear model. Cross-validation and the validation split choose features, regularization and class weights."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from tlm_core.linear.model import Features, Floats, LinearModel, rows_of
from tlm_core.linear.ngrams import FAMILIES, START_WORDS
from tlm_core.linear.params import (
    AT_ONCE,
    FINALISTS,
    FOLDS,
    LARGE,
    NEAR,
    STRENGTHS,
    TUNED_ROWS,
    most_fits,
    screened_folds,
)
from tlm_core.processes import Processes, processes
from tlm_core.pulse import PULSE
from tlm_core.tasks.metrics import Targets, ranking_score
from tlm_core.tasks.task import Task

SEED = 0

Solution = tuple[Floats, Floats]  # weights [features, outputs], bias [outputs]
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """The settings that cross-validation chooses.

    families: number of FAMILIES that the model uses, words first. strength: see STRENGTHS. start_words: see `Alphabet`.
    """

    families: int
    strength: float
    class_weight: Literal["balanced"] | None
    start_words: int = 0


@dataclass(frozen=True)
class Fitted:
    """A model fitted on train, with its setting.

    score: mean of the task's metric over the folds and validation, weighted by rows; None if the metric is undefined.
    held_out: outputs for each train row from a model that did not learn from this row, [train rows, outputs].
    tried: all settings that were scored on the first folds, with these scores; see `screened_folds`.
    """

    model: LinearModel
    setting: Setting
    score: float | None
    held_out: Floats
    tried: tuple[tuple[Setting, float], ...]


def fit(task: Task, report: Callable[[int, int], object] = lambda _done, _most: None) -> Fitted:
    """Choose and fit a linear model on the train split of a task.

    report: receives the number of models fitted so far and the largest possible number. Several threads call it.
    """
    search = _Search(task, report)
    with parallel_fits(search.data[0].train[len(FAMILIES)].nnz) as search.fits:
        setting, score, tried = search.choose()
        held_out = search.held_out(setting)
        weights, bias = search.train(setting, np.arange(len(search.targets)))
    features = search.data[setting.start_words].features.only(setting.families)
    return Fitted(LinearModel(features, weights, bias), setting, score, held_out, tried)


@dataclass(frozen=True)
class Fits:
    """Runs fits in parallel in processes. Without processes, fits run one after another.

    Fits in threads of one process would not be reproducible, because liblinear has one random generator per process.
    """

    processes: Processes | None = None

    def map(self, function: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """Return the result of `function` for each item, in order. `function` must run its fits with `call`."""
        if self.processes is None:
            return list(map(function, items))
        with ThreadPoolExecutor(self.processes.count) as threads:
            return list(threads.map(function, items))

    def call(self, function: Callable[..., T], *args: object) -> T:
        PULSE.advance()
        return function(*args) if self.processes is None else self.processes.call(function, *args)


@contextmanager
def parallel_fits(values: int) -> Iterator[Fits]:
    """Yield `Fits`, with processes if these save time. values: number of nonzero feature values of a fit."""
    count = min(AT_ONCE, os.cpu_count() or 1) if values >= LARGE else 1
    if count == 1:
        yield Fits()
    else:
        with processes(count) as started:
            yield Fits(started)


class _Data:
    """The features of all families. train: n → values of the first n families, [train rows, features].

    validation: values of all families, [validation rows, features].
    """

    def __init__(self, task: Task, start_words: int) -> None:
        self.features, sequences = Features.learn(rows_of(task, "train"), FAMILIES, start_words)
        matrix = self.features.matrix(sequences)
        counts = range(1, len(FAMILIES) + 1)
        self.train: dict[int, sp.csr_matrix] = {n: matrix[:, : len(self.features.only(n))] for n in counts}
        self.validation = self.features.encode(rows_of(task, "validation"))


class _Search:
    """Cross-validation of settings.

    Train rows are often related, such as sentences of one document. Validation rows are not related to them. So each
    score includes validation, weighted by the number of rows.
    """

    fits: Fits

    def __init__(self, task: Task, report: Callable[[int, int], object]) -> None:
        self.task = task
        self._report, self._fitted = report, itertools.count(1)
        self.targets = task.targets("train")
        self._true = task.targets("validation")
        self._outputs = len(task.labels)
        self._weights: list[Literal["balanced"] | None] = [None, "balanced"] if task.type.has_classes else [None]
        self._folds = _folds(self.targets, task.type.has_classes)
        self.data = {0: _Data(task, 0)}  # start_words → features
        self._solve = solver_of(task)
        self._scores: dict[tuple[Setting, int], float | None] = {}

    def _matrix(self, setting: Setting) -> sp.csr_matrix:
        """Return the features of the train rows, [rows, features]."""
        return self.data[setting.start_words].train[setting.families]

    def choose(self) -> tuple[Setting, float | None, tuple[tuple[Setting, float], ...]]:
        """Return the best setting, its mean score over all folds, and the settings and scores for `Fitted.tried`."""
        chains = [(families, weight) for families in self.data[0].train for weight in self._weights]
        tried = [result for results in self.fits.map(self._try_strengths, chains) for result in results]
        if not tried:
            return Setting(1, 1.0, None), None, ()
        finalists = sorted(tried, key=lambda result: -result[1])[:FINALISTS]
        settings = [setting for setting, _ in finalists]
        means = self.fits.map(self._mean_score, settings)
        best = settings[int(np.argmax(means))]
        if not self.task.pair:
            best = self._choose_start(best)
        return best, self._mean_score(best), tuple(tried)

    def _choose_start(self, best: Setting) -> Setting:
        """Return a setting with `start_words` if its mean gain over `best` exceeds one standard error, else `best`.

        The new setting has the families of `best`, and the strength of `best` or a neighboring strength.
        """
        self.data[START_WORDS] = _Data(self.task, START_WORDS)
        place = STRENGTHS.index(best.strength)
        near = STRENGTHS[max(0, place - NEAR) : place + NEAR + 1]
        settings = [replace(best, strength=strength, start_words=START_WORDS) for strength in near]
        means = self.fits.map(self._mean_score, settings)
        candidate = settings[int(np.argmax(means))]
        gains = [self._fold_gain(candidate, best, fold) for fold in range(len(self._folds))]
        return candidate if np.mean(gains) > np.std(gains, ddof=1) / math.sqrt(len(gains)) else best

    def _fold_gain(self, candidate: Setting, best: Setting, fold: int) -> float:
        ours, without = self._scores.get((candidate, fold)), self._scores.get((best, fold))
        return 0.0 if ours is None or without is None else ours - without

    def _try_strengths(self, chain: tuple[int, Literal["balanced"] | None]) -> list[tuple[Setting, float]]:
        """Return settings with increasing `strength` (C of the SVM), and their mean scores on the first folds.

        chain: number of feature families, and class weight; all settings share them. After two decreases of the score
        in a row, the method skips higher values of C, because their fits are slow.
        """
        screening = screened_folds(len(self.targets), len(self._folds))
        tried: list[tuple[Setting, float]] = []
        for strength in STRENGTHS:
            setting = Setting(chain[0], strength, chain[1])
            score = self._score(setting, screening)
            if score is None:
                return tried
            tried.append((setting, score))
            if len(tried) > 2 and tried[-3][1] > tried[-2][1] > score:
                break
        return tried

    def _mean_score(self, setting: Setting) -> float:
        score = self._score(setting, len(self._folds))
        return -1.0 if score is None else score

    def _score(self, setting: Setting, folds: int) -> float | None:
        """Return the mean score of the first `folds` folds. Omit folds without a score. None: no fold has a score."""
        scores = []
        for number in range(folds):
            if (setting, number) not in self._scores:
                self._scores[setting, number] = self._score_fold(setting, number)
            if (score := self._scores[setting, number]) is not None:
                scores.append(score)
        return float(np.mean(scores)) if scores else None

    def _score_fold(self, setting: Setting, number: int) -> float | None:
        train, held_out = self._folds[number]
        weights, bias = self.train(setting, train[:: max(1, len(train) // TUNED_ROWS)])
        validation = self.data[setting.start_words].validation[:, : len(weights)]
        total, count = 0.0, 0
        for matrix, true, rows in (
            (self._matrix(setting)[held_out], self.targets[held_out], len(self.targets)),
            (validation, self._true, len(self._true)),
        ):
            guesses = self.task.type.predict(np.asarray(matrix @ weights) + bias)
            if (score := ranking_score(self.task.metric, true, guesses)) is not None:
                total, count = total + score * rows, count + rows
        return total / count if count else None

    def held_out(self, setting: Setting) -> Floats:
        """Return the outputs for each row from a model that did not learn from this row, [rows, outputs]."""
        outputs = np.zeros((len(self.targets), self._outputs), np.float32)
        matrix = self._matrix(setting)
        for train, held_out in self._folds:  # one after another, because each has weights for all features
            weights, bias = self.train(setting, train)
            outputs[held_out] = np.asarray(matrix[held_out] @ weights, np.float32) + bias
        return outputs

    def train(self, setting: Setting, rows: NDArray[np.intp]) -> Solution:
        """Fit on the train rows with the indices `rows`. Return weights [features, outputs] and bias [outputs]."""
        fitted = self.fits.call(self._solve, self._matrix(setting)[rows], self.targets[rows], setting)
        self._report(next(self._fitted), most_fits(len(self.targets), len(self._weights)))
        return fitted


def _folds(targets: Targets, classes: bool) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    from sklearn.model_selection import KFold, StratifiedKFold

    # Each fold needs a row of the most frequent label. If each label has only one row, stratified folds are impossible.
    frequent = int(np.unique(targets, return_counts=True)[1].max()) if classes else 0
    stratified = frequent > 1
    count = max(2, min(FOLDS, len(targets), *([frequent] if stratified else [])))
    splitter = (StratifiedKFold if stratified else KFold)(count, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():  # some labels have fewer rows than there are folds
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter.split(targets, targets))


def solver_of(task: Task) -> Callable[[sp.csr_matrix, Targets, Setting], Solution]:
    """Return the function that fits a classifier or a regression model for a task. Equal inputs give equal weights."""
    return partial(support_vectors, outputs=len(task.labels)) if task.type.has_classes else _ridge


def _ridge(matrix: sp.csr_matrix, targets: Targets, setting: Setting) -> Solution:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=0.5 / setting.strength, solver="sparse_cg", tol=1e-4).fit(matrix, targets.astype(np.float64))
    return model.coef_.astype(np.float32)[:, None], np.array([model.intercept_], np.float32)


def support_vectors(
    matrix: sp.csr_matrix,
    targets: Targets,
    setting: Setting,
    outputs: int,
    row_weights: NDArray[np.float64] | None = None,
) -> Solution:
    """Fit a support vector machine for each label against the other labels.

    Returns the weights [features, outputs] and the bias [outputs]. A label without rows gets the bias -10.
    outputs: number of labels. row_weights: weights in the loss, [rows]. None: equal weights.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    weights, bias = np.zeros((matrix.shape[1], outputs), np.float32), np.full(outputs, -10.0, np.float32)
    labels = np.unique(targets)
    if len(labels) == 1:
        bias[labels] = 10.0
        return weights, bias
    model = LinearSVC(C=setting.strength, class_weight=setting.class_weight, tol=1e-2, random_state=SEED)
    with warnings.catch_warnings():  # weights that have not fully converged suffice
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(matrix, targets, sample_weight=row_weights)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(labels) == 2:  # one machine, whose positive side is the second label
        coefficients, intercepts = np.stack([-coefficients[0], coefficients[0]]), np.array([-1, 1]) * intercepts
    weights[:, labels], bias[labels] = coefficients.T, intercepts
    return weights, bias
