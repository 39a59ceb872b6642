"""Parameters of the stages of the linear model, and the number of models that they fit."""

from __future__ import annotations

import math

from tlm_core.linear.ngrams import FAMILIES
from tlm_core.training.stage import StageParams

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C of the support vector machine; a lower C regularizes more
FOLDS = 5
SCREENED_ROWS = 1_000  # held-out rows that score each setting; with fewer rows, chance decides
FINALISTS = 3
TUNED_ROWS = 20_000  # more rows change the choice little
AT_ONCE = 4  # fits in parallel: the number of combinations of families and class weights
LARGE = 100_000  # number of feature values from which parallel fits save more time than the start of processes costs
NEAR = 1  # neighbors of a strength on each side that are also tried with `start_words`

MOST_PIECES = 60_000  # limit on the pieces that the teacher labels
MOST_LABELED = 20_000  # limit on the pieces that a linear model learns from
ROUNDS = 2  # each round of self-training labels the pieces again
CANDIDATES = 2  # candidates per piece that a student learns from; more candidates cost time and add little


class SelfTrainParams(StageParams):
    """Parameters of `self_train`. amounts: numbers of labeled pieces per train row. Validation chooses one amount."""

    amounts: tuple[float, ...]


class BaselineParams(StageParams):
    """The stage `baseline` has no parameters. Cross-validation and validation choose its setting."""


def most_fits(rows: int, class_weights: int) -> int:
    """Return the maximum number of models that `fit` trains for `rows` train rows and `class_weights` class weights."""
    folds = min(FOLDS, rows)
    screening = screened_folds(rows, folds)
    settings = len(FAMILIES) * class_weights * len(STRENGTHS)
    finalists = FINALISTS * (folds - screening) + (2 * NEAR + 1) * folds
    return settings * screening + finalists + folds + 1  # at the end, the held-out outputs and the model


def screened_folds(rows: int, folds: int) -> int:
    """Return the number of folds on which all settings are scored. Only the best settings are scored on all folds."""
    return min(math.ceil(SCREENED_ROWS * folds / max(1, rows)), folds)
