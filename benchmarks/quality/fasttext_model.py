"""fastText (Joulin et al. 2016), a rival in `make evidence-runs`.

Validation chooses the rate, the epochs and the n-grams. The package fasttext-numpy2-wheel is not a requirement of the
project; install it first.
"""

from __future__ import annotations

import importlib
import itertools
import re
import tempfile
from pathlib import Path

from sklearn.metrics import f1_score

from benchmarks.quality.linear import TOKEN, read_rows
from tlm_core.errors import MissingDependency

RATES, EPOCHS = (0.1, 0.5, 1.0), (25, 50)
NGRAMS = ((2, 0, 0), (2, 3, 6), (3, 2, 5))  # longest word n-gram; shortest and longest character n-gram
PREFIX = "__label__"


def evaluate(folder: Path) -> tuple[float, float]:
    """Return macro-F1 on validation and on test, for the setting with the best score on validation."""
    try:
        fasttext = importlib.import_module("fasttext")
    except ImportError as error:
        raise MissingDependency("fastText is not installed. Run: pip install fasttext-numpy2-wheel") from error
    rows = {split: read_rows(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    labels = sorted(set(rows["train"][1].tolist()))
    texts = {
        split: [" ".join(re.findall(TOKEN, text.lower())) for text in of_split[0]] for split, of_split in rows.items()
    }
    best = (-1.0, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "train.txt"
        lines = (
            f"{PREFIX}{labels.index(label)} {text}\n"
            for text, label in zip(texts["train"], rows["train"][1], strict=True)
        )
        file.write_text("".join(lines), encoding="utf-8")
        for rate, epochs, (words, shortest, longest) in itertools.product(RATES, EPOCHS, NGRAMS):
            model = fasttext.train_supervised(
                str(file), lr=rate, epoch=epochs, wordNgrams=words, minn=shortest, maxn=longest, bucket=500_000,
                thread=1, verbose=0,
            )  # fmt: skip
            scores = {}
            for split in ("validation", "test"):
                answers = model.predict(texts[split])[0]
                predicted = [labels[int(answer[0].removeprefix(PREFIX))] for answer in answers]
                scores[split] = float(f1_score(rows[split][1].tolist(), predicted, average="macro"))
            best = max(best, (scores["validation"], scores["test"]))
    return best
