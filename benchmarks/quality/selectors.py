"""Which selector is worth it, at equal tokens and equal training: `python -m benchmarks.quality.selectors sciie`.

Each selector but `whole` may keep as many passages as BM25 found; the joint stage sees the same number of tokens from
each. On our engine, in this process; every run's outcome is kept under build/quality and not run again.
"""

from __future__ import annotations

import argparse
from typing import Any

import pyarrow.parquet as pq
import yaml

from benchmarks.quality.data import outcome, selected
from benchmarks.report import figure
from tlm_core.training.recipe import resolve

SELECTORS = ("bm25", "random", "dsir", "classifier", "whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", help="folders under tasks/ of the shared data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all runs")
    given = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in given.set)}
    named = " ".join(given.set)
    for name in given.tasks:
        _, found = selected(name, resolve("fast", "tiny", changes).selection)
        count = pq.ParquetFile(found / "passages.parquet").metadata.num_rows
        for selector in SELECTORS:
            own: dict[str, Any] = {"selection.selector": selector}
            if selector not in ("bm25", "whole"):
                own["selection.max_passages"] = count
            recipe = resolve("fast", "tiny", changes | own)
            task, selection = selected(name, recipe.selection)
            runs = [
                outcome(name, f"{selector} {named} {seed}", task, selection, recipe, seed)
                for seed in range(given.seeds)
            ]
            for split in ("validation", "test"):
                figure(f"{name}_{selector}_{split}", [run[split] for run in runs], unit="score")


if __name__ == "__main__":
    main()
