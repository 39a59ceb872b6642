"""Measure downloaded models on one core: `python -m benchmarks.quality.serving TEST.jsonl MODEL_DIR…`.

Name a model and its copy from `tlm quantize` to compare the two. TEST.jsonl has a `text` and a `label` in each line.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import figure
from tlm_core.serving import MODEL, Model, load_model
from tlm_core.tasks.metrics import score

ONE_BY_ONE = 200  # texts
RUNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("test", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # onnxruntime then starts one thread
    rows = [json.loads(line) for line in options.test.read_text(encoding="utf-8").splitlines()]
    texts, labels = ([row[name] for row in rows] for name in ("text", "label"))
    first, *others = [(folder.name, measure(folder, texts, labels)) for folder in options.models]
    for name, guess in others:
        figure(f"{name}_equal_labels", [float((guess == first[1]).mean())], unit="share of the first model's")


def measure(folder: Path, texts: list[str], labels: list[str]) -> NDArray[np.int64]:
    """Print macro-F1, the size of the graph, texts per second in batches, and the mean time of one text.

    Return the indices of the predicted labels, [texts].
    """
    model = load_model(folder)
    truth = [model.labels.index(label) for label in labels]
    guess = model.probabilities(texts).argmax(axis=1)  # also warms up
    value = score(truth, guess, len(model.labels), "macro_f1")["value"]
    figure(f"{folder.name}_macro_f1", [value], unit="macro-F1")
    figure(f"{folder.name}_size", [(folder / MODEL).stat().st_size / 1e6], unit="MB", better="lower")
    figure(f"{folder.name}_speed", [len(texts) / seconds(model, [texts]) for _ in range(RUNS)], unit="texts/s")
    alone = [[text] for text in texts[:ONE_BY_ONE]]
    runs = [1e3 * seconds(model, alone) / len(alone) for _ in range(RUNS)]
    figure(f"{folder.name}_one_text", runs, unit="ms", better="lower")
    return guess


def seconds(model: Model, requests: list[list[str]]) -> float:
    """Return the seconds of CPU time for these requests, one after another. Other processes hardly affect CPU time."""
    start = time.process_time()
    for texts in requests:
        model.probabilities(texts)
    return time.process_time() - start


if __name__ == "__main__":
    main()
