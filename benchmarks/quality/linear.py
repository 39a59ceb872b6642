"""Score a linear model on TF-IDF for comparison, tuned by cross-validation on train.

`python -m benchmarks.quality.linear sciie acl_arc sci_cite csabstruct` prints one JSON line per task. Features are word
1-2-grams, in which entity marks such as `[[` are tokens, and character n-grams of 2 to 5 (`char_wb`). Both have
sublinear term frequency. Stratified folds of train choose the feature family, the class weights and C of a linear SVM.
Then they choose among logistic regressions on that family. To save time, the script compares all candidates only on
the first folds that together hold out 1,000 rows. Then it compares the best candidates on all five folds. It fits the
best model on train, and again on train and validation.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.svm import LinearSVC

from benchmarks.report import remark
from benchmarks.shared import shared_data
from tlm_core.evaluation.bootstrap import RESAMPLES

TOKEN = r"\[\[|\]\]|<<|>>|\w+|[^\w\s]"
FAMILIES = ({"features__char": ["drop"]}, {"features__word": ["drop"]}, {})
SVM = {"model__C": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0], "model__class_weight": [None, "balanced"]}
LOGISTIC = {"model__C": [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0], "model__class_weight": [None, "balanced"]}
FOLDS = 5
SCREENED_ROWS = 1_000  # held-out rows on which all candidates are compared; with fewer rows, chance would decide

Rows = tuple[NDArray[Any], NDArray[Any]]  # texts and labels


def read_rows(path: Path) -> Rows:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return np.array([row["text"] for row in rows], dtype=object), np.array([row["label"] for row in rows])


def tune(train: Rows) -> tuple[Pipeline, float]:
    """Return the best model, not fitted, and its mean macro-F1 over the folds of train."""
    word = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True)
    char = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
    with tempfile.TemporaryDirectory() as cache:
        features = FeatureUnion([("word", word), ("char", char)])
        svm = Pipeline([("features", features), ("model", LinearSVC(tol=1e-2, random_state=0))], memory=cache)
        svm, svm_score = _search(svm, [SVM | family for family in FAMILIES], train, finalists=6)
        logistic = clone(svm).set_params(model=LogisticRegression(max_iter=100))
        logistic, logistic_score = _search(logistic, [LOGISTIC], train, finalists=2)
    best, score = max((svm, svm_score), (logistic, logistic_score), key=lambda result: result[1])
    return best.set_params(memory=None), score


def _search(model: Pipeline, grid: list[dict[str, Any]], train: Rows, *, finalists: int) -> tuple[Pipeline, float]:
    """Return the model with the best setting, and its score. finalists: number of settings to compare on all folds."""
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(*train))

    def scores(grid: list[dict[str, Any]], count: int) -> tuple[NDArray[Any], list[dict[str, Any]]]:
        search = GridSearchCV(model, grid, scoring="f1_macro", cv=folds[:count], refit=False, n_jobs=2).fit(*train)
        return search.cv_results_["mean_test_score"], search.cv_results_["params"]

    screening = min(FOLDS, math.ceil(SCREENED_ROWS * FOLDS / len(train[0])))
    screened, candidates = scores(grid, screening)
    best = [candidates[place] for place in np.argsort(-screened, kind="stable")[:finalists]]
    means, candidates = scores([{name: [value] for name, value in params.items()} for params in best], FOLDS)
    remark(f"{candidates[means.argmax()]}: {means.max():.4f}")
    return clone(model).set_params(**candidates[means.argmax()]), float(means.max())


def test_scores(model: Pipeline, train: Rows, test: Rows) -> dict[str, Any]:
    """Fit the model on `train`. Return the seconds, and the scores on all test texts and on those not in `train`."""
    start = time.perf_counter()
    predictions = clone(model).fit(*train).predict(test[0])
    seconds = time.perf_counter() - start
    unseen = ~np.isin(test[0], train[0])
    return {
        "macro_f1": round(f1_score(test[1], predictions, average="macro"), 4),
        "interval": interval(test[1], predictions),
        "accuracy": round(float(accuracy_score(test[1], predictions)), 4),
        "macro_f1_unseen": round(f1_score(test[1][unseen], predictions[unseen], average="macro"), 4),
        "unseen_rows": int(unseen.sum()),
        "seconds": round(seconds, 2),
    }


def interval(labels: NDArray[Any], predictions: NDArray[Any]) -> tuple[float, float]:
    """Return the 95 % interval of macro-F1 by a bootstrap over the rows."""
    draws = np.random.default_rng(0).integers(0, len(labels), (RESAMPLES, len(labels)))
    low, high = np.percentile([f1_score(labels[d], predictions[d], average="macro") for d in draws], [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)


def evaluate(folder: Path) -> dict[str, Any]:
    """Tune the model on train. Return its test scores after a fit on train, and after a fit on train and validation."""
    train, validation, test = (read_rows(folder / f"{split}.jsonl") for split in ("train", "validation", "test"))
    start = time.perf_counter()
    model, score = tune(train)
    both = (np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]]))
    families = [name for name, vectorizer in model["features"].transformer_list if vectorizer != "drop"]
    return {
        "task": folder.name,
        "model": f"{model['model']} on {' and '.join(families)} n-grams",
        "cross_validated_macro_f1": round(score, 4),
        "tuning_seconds": round(time.perf_counter() - start),
        "train": test_scores(model, train, test),
        "train_and_validation": test_scores(model, both, test),
    }


def majority(train: Rows, test: Rows) -> float:
    """Return macro-F1 on test of a model that always predicts the most frequent label of train."""
    labels, counts = np.unique(train[1], return_counts=True)
    return float(f1_score(test[1], np.full(len(test[1]), labels[counts.argmax()]), average="macro", zero_division=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", help="folders below tasks/ of the shared data, or paths")
    warnings.simplefilter("ignore", ConvergenceWarning)
    for name in parser.parse_args().tasks:
        folder = Path(name) if Path(name).is_dir() else shared_data() / "tasks" / name
        print(json.dumps(evaluate(folder)), flush=True)


if __name__ == "__main__":
    main()
