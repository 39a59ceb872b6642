"""Measure how early the ranking of suspect labels lists wrong labels: `python -m benchmarks.quality.suspects sci_cite`.

In each run 5 % of the train labels change to another label, drawn uniformly. The figure is the share of these rows
within the first tenth of the ranked train rows. The ranking uses the labels of the rows before and after each row in
the file. A second figure is for files in random order: there the ranking ignores these labels.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.quality.data import task_folder
from benchmarks.report import figure
from tlm_core.evaluation.suspects import LabelModel, Split
from tlm_core.linear.fit import fit
from tlm_core.tasks.task import Task

GOAL = 0.6
SEEDS = 5
CHANGED = 0.05
READ = 0.1  # share of the ranked rows that a user reads
UNIT = f"share of changed labels in the first {READ:.0%}"


def with_wrong_labels(task: Task, seed: int) -> tuple[Task, NDArray[np.int64]]:
    """Return the task with changed train labels, and the indices of the changed rows."""
    random, labels = np.random.default_rng(seed), task.label_ids("train")
    places = random.choice(len(labels), round(CHANGED * len(labels)), replace=False)
    changed = labels.copy()
    changed[places] = (labels[places] + random.integers(1, len(task.labels), len(places))) % len(task.labels)
    train = task.splits["train"]
    column = train.schema.get_field_index("label")
    train = train.set_column(column, train.schema.field(column), pa.array(changed, train.schema.field(column).type))
    return replace(task, splits={**task.splits, "train": train}), places


def share_in_first(split: Split, places: NDArray[np.int64]) -> float:
    """Return the share of the rows `places` that are in the first tenth of the ranking."""
    scores, _ = LabelModel.fit(split).doubts(split)
    first = np.argsort(-scores, kind="stable")[: round(READ * len(scores))]
    return float(np.isin(places, first).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", help="folders below tasks/ of the shared data")
    for name in parser.parse_args().tasks:
        task = Task.read(task_folder(name))
        shares, alone = [], []
        for seed in range(SEEDS):
            wrong, places = with_wrong_labels(task, seed)
            split = Split.of(wrong, "train", fit(wrong).held_out)
            shares.append(share_in_first(split, places))
            far = replace(split, numbers=10 * split.numbers)  # no row is the neighbor of another
            alone.append(share_in_first(far, places))
        figure(f"suspects_{name}", shares, unit=UNIT, goal=GOAL)
        figure(f"suspects_{name}_without_neighbors", alone, unit=UNIT)


if __name__ == "__main__":
    main()
