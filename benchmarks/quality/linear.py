"""The rival to beat: a linear model on TF-IDF, tuned by cross-validation on train.

`python -m benchmarks.quality.linear sciie acl_arc sci_cite csabstruct` prints JSON lines. Features are word 1-2-grams,
in which entity marks such as `[[` are tokens, and character n-grams of 2 to 5 (`char_wb`), both with sublinear term
frequency. Five stratified folds of train choose among feature families, LinearSVC and logistic regression, C from 0.01
to 100, and class weights. The best choice is fitted on train, and again on train and validation together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from benchmarks.shared import shared_data

TOKEN = r"\[\[|\]\]|<<|>>|\w+|[^\w\s]"
FAMILIES = ("word", "char", "word+char")
MODELS = ("svm", "logistic")
COSTS = (0.01, 0.1, 1.0, 10.0, 100.0)
FOLDS = 5

Texts = list[str]
Labels = NDArray[np.str_]


@dataclass(frozen=True)
class Choice:
    """The settings of one linear model."""

    family: str
    model: str
    cost: float
    balanced: bool

    def classifier(self) -> LinearSVC | OneVsRestClassifier:
        weight = "balanced" if self.balanced else None
        if self.model == "svm":
            return LinearSVC(C=self.cost, class_weight=weight, random_state=0, max_iter=3000)
        return OneVsRestClassifier(
            LogisticRegression(C=self.cost, class_weight=weight, solver="liblinear", random_state=0, max_iter=300)
        )


class Features:
    """TF-IDF of one family or both, fitted on the training texts of a fold."""

    def __init__(self, family: str) -> None:
        word = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True)
        char = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
        self._vectorizers = {"word": [word], "char": [char], "word+char": [word, char]}[family]

    def fit(self, texts: Texts) -> csr_matrix:
        return hstack([vectorizer.fit_transform(texts) for vectorizer in self._vectorizers], format="csr")

    def transform(self, texts: Texts) -> csr_matrix:
        return hstack([vectorizer.transform(texts) for vectorizer in self._vectorizers], format="csr")


def read(path: Path) -> tuple[Texts, Labels]:
    """Return the texts and labels of a split."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], np.array([row["label"] for row in rows])


def macro_f1(labels: Labels, predictions: Labels) -> float:
    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def cross_validate(texts: Texts, labels: Labels) -> Iterator[tuple[Choice, float]]:
    """Yield each choice with its mean macro-F1 over the folds."""
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(texts, labels))
    for family in FAMILIES:
        matrices = []
        for train, held_out in folds:
            features = Features(family)
            matrices.append((features.fit([texts[i] for i in train]), features.transform([texts[i] for i in held_out])))
        for model, cost, balanced in itertools.product(MODELS, COSTS, (False, True)):
            choice = Choice(family, model, cost, balanced)
            scores = [
                macro_f1(labels[held_out], choice.classifier().fit(fitted, labels[train]).predict(rest))
                for (train, held_out), (fitted, rest) in zip(folds, matrices, strict=True)
            ]
            yield choice, float(np.mean(scores))


def test_scores(choice: Choice, train: tuple[Texts, Labels], test: tuple[Texts, Labels]) -> dict[str, float]:
    """Return macro-F1 and accuracy on test, also without the test texts that are in train, and the seconds to fit."""
    started = time.perf_counter()
    features = Features(choice.family)
    classifier = choice.classifier().fit(features.fit(train[0]), train[1])
    seconds = time.perf_counter() - started
    predictions = classifier.predict(features.transform(test[0]))
    seen = set(train[0])
    unseen = np.array([text not in seen for text in test[0]])
    return {
        "macro_f1": macro_f1(test[1], predictions),
        "accuracy": float(accuracy_score(test[1], predictions)),
        "macro_f1_unseen": macro_f1(test[1][unseen], predictions[unseen]),
        "unseen_rows": int(unseen.sum()),
        "seconds": round(seconds, 2),
    }


def evaluate(folder: Path) -> dict[str, object]:
    """Choose by cross-validation on train, then score test once for each training set."""
    train, validation, test = (read(folder / f"{split}.jsonl") for split in ("train", "validation", "test"))
    choice, score = max(cross_validate(*train), key=lambda scored: scored[1])
    both = (train[0] + validation[0], np.concatenate([train[1], validation[1]]))
    return {
        "task": folder.name,
        "choice": vars(choice),
        "cross_validated": round(score, 4),
        "train": test_scores(choice, train, test),
        "train_and_validation": test_scores(choice, both, test),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", help="folders below tasks/ of the shared data, or paths")
    warnings.simplefilter("ignore", ConvergenceWarning)
    for name in parser.parse_args(arguments).tasks:
        folder = Path(name) if Path(name).is_dir() else shared_data() / "tasks" / name
        print(f"{folder.name}: cross-validating", file=sys.stderr)
        print(json.dumps(evaluate(folder)), flush=True)


if __name__ == "__main__":
    main()
