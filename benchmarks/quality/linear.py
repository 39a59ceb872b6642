"""Compare with a linear model on TF-IDF, tuned by cross-validation on train.

`python -m benchmarks.quality.linear sciie acl_arc sci_cite csabstruct` prints one JSON line per task. Features are word
1-2-grams, in which entity marks such as `[[` are tokens, and character n-grams of 2 to 5 (`char_wb`), both with
sublinear term frequency. Stratified folds of train choose the feature family, the class weights and C of a linear SVM,
then among logistic regressions on that family. One fold screens all candidates; five folds compare the best of them.
The best model is fitted on train, and again on train and validation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from benchmarks.report import remark
from benchmarks.shared import shared_data

TOKEN = r"\[\[|\]\]|<<|>>|\w+|[^\w\s]"
FAMILIES = ("word", "char", "word+char")
COSTS = {"svm": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), "logistic": (1.0, 10.0, 100.0, 1000.0)}
FINALISTS = {"svm": 6, "logistic": 2}
FOLDS = 5

Labels = NDArray[np.str_]


@dataclass(frozen=True)
class Candidate:
    """The settings of a linear model."""

    family: str
    model: Literal["svm", "logistic"]
    cost: float
    balanced: bool

    def classifier(self) -> LinearSVC | LogisticRegression:
        weight = "balanced" if self.balanced else None
        if self.model == "svm":
            return LinearSVC(C=self.cost, class_weight=weight, random_state=0, tol=1e-2)
        return LogisticRegression(C=self.cost, class_weight=weight, max_iter=100)


@dataclass(frozen=True)
class Rows:
    """Labeled texts."""

    texts: list[str]
    labels: Labels

    @classmethod
    def read(cls, path: Path) -> Rows:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return cls([row["text"] for row in rows], np.array([row["label"] for row in rows]))

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.texts + other.texts, np.concatenate([self.labels, other.labels]))

    def __getitem__(self, positions: Sequence[int]) -> Rows:
        return Rows([self.texts[position] for position in positions], self.labels[positions])


class Split:
    """Rows to fit a model on and rows to predict, with the TF-IDF features of each family."""

    def __init__(self, train: Rows, test: Rows) -> None:
        self.train, self.test = train, test

    @cached_property
    def _matrices(self) -> dict[str, tuple[csr_matrix, csr_matrix]]:
        vectorizers = {
            "word": TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True),
            "char": TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2),
        }
        return {
            family: (vectorizer.fit_transform(self.train.texts), vectorizer.transform(self.test.texts))
            for family, vectorizer in vectorizers.items()
        }

    def predict(self, candidate: Candidate) -> Labels:
        """Fit the candidate and return the labels that it predicts."""
        pairs = [self._matrices[family] for family in candidate.family.split("+")]
        train, test = (hstack(matrices, format="csr") for matrices in zip(*pairs, strict=True))
        predictions: Labels = candidate.classifier().fit(train, self.train.labels).predict(test)
        return predictions

    def score(self, candidate: Candidate) -> float:
        return macro_f1(self.test.labels, self.predict(candidate))


def macro_f1(labels: Labels, predictions: Labels) -> float:
    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def choose(train: Rows) -> tuple[Candidate, float]:
    """Return the best candidate and its mean macro-F1 over the folds of train."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(train.texts, train.labels)
    splits = [Split(train[fitted], train[held_out]) for fitted, held_out in folds]
    svm, svm_score = _best(splits, "svm", FAMILIES)
    logistic, logistic_score = _best(splits, "logistic", (svm.family,))
    return (svm, svm_score) if svm_score >= logistic_score else (logistic, logistic_score)


def _best(
    splits: Sequence[Split], model: Literal["svm", "logistic"], families: Sequence[str]
) -> tuple[Candidate, float]:
    candidates = [
        Candidate(family, model, cost, balanced)
        for family, cost, balanced in itertools.product(families, COSTS[model], (False, True))
    ]
    finalists = sorted(candidates, key=splits[0].score, reverse=True)[: FINALISTS[model]]
    scores = {finalist: float(np.mean([split.score(finalist) for split in splits])) for finalist in finalists}
    best = max(scores, key=scores.__getitem__)
    remark(f"{best}: {scores[best]:.4f}")
    return best, scores[best]


def test_scores(candidate: Candidate, train: Rows, test: Rows) -> dict[str, float]:
    """Return macro-F1 and accuracy on test, macro-F1 on the test texts that train lacks, and the seconds to fit."""
    start = time.perf_counter()
    predictions = Split(train, test).predict(candidate)
    seconds = time.perf_counter() - start
    unseen = ~np.isin(test.texts, train.texts)
    return {
        "macro_f1": round(macro_f1(test.labels, predictions), 4),
        "accuracy": round(float(accuracy_score(test.labels, predictions)), 4),
        "macro_f1_unseen": round(macro_f1(test.labels[unseen], predictions[unseen]), 4),
        "unseen_rows": int(unseen.sum()),
        "seconds": round(seconds, 2),
    }


def evaluate(folder: Path) -> dict[str, object]:
    """Choose by cross-validation on train, then score test once for each training set."""
    train, validation, test = (Rows.read(folder / f"{split}.jsonl") for split in ("train", "validation", "test"))
    start = time.perf_counter()
    best, score = choose(train)
    return {
        "task": folder.name,
        "best": asdict(best),
        "cross_validated_macro_f1": round(score, 4),
        "tuning_seconds": round(time.perf_counter() - start),
        "train": test_scores(best, train, test),
        "train_and_validation": test_scores(best, train + validation, test),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", help="folders below tasks/ of the shared data, or paths")
    warnings.simplefilter("ignore", ConvergenceWarning)
    for name in parser.parse_args().tasks:
        folder = Path(name) if Path(name).is_dir() else shared_data() / "tasks" / name
        print(json.dumps(evaluate(folder)), flush=True)


if __name__ == "__main__":
    main()
