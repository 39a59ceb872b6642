"""Which selector is worth it, at equal tokens and equal training: `python -m benchmarks.quality.selectors sciie`.

Each selector but `whole` may keep as many passages as BM25 found; the joint stage sees the same number of tokens from
each. On our engine, in this process; every run's outcome is kept under build/quality and not run again.
"""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from benchmarks.quality.runs import asked, outcome, selected
from benchmarks.report import figure
from tlm_core.training.recipe import resolve

SELECTORS = ("bm25", "random", "dsir", "classifier", "whole")


def main() -> None:
    given, changes, named = asked(__doc__)
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
