"""Check whether recipe `fast` reaches in three minutes the validation score that recipe `paper` reaches in thirty.

`python -m benchmarks.quality.time_to_quality sciie sci_cite` takes hours, and needs an idle machine.

Both recipes train on the passages that `fast` selects. `paper` keeps its losses and architecture (BERT 4 x 256,
post-norm, AdamW). Its token budget is the measured rate times the minutes of the joint stage. Each setting in PAPER
first trains for a part of the budget. The setting with the best validation score then trains for the whole budget.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from benchmarks.quality.data import task_folder
from benchmarks.quality.runs import argument_parser, report_folder, train
from benchmarks.report import figure, remark
from tlm_core.jobs.spec import JobSpec
from tlm_core.json_files import read_json
from tlm_core.training.recipe import Recipe, resolve

MINUTES, GOAL_MINUTES, TUNING_MINUTES = 30.0, 3.0, 4.0
FINETUNE_SHARE = 0.2
# Limits of finetuning. A tuning run has more than its share of the steps: after two epochs, scores hardly differ.
STEPS, TUNING_STEPS = 1000, 400
# The published settings are for 150,000 steps; a short budget needs more task batches and a higher rate.
PAPER = {
    f"rho1={rho1} lr={rate:g}": {"joint.rho1": rho1, "joint.optimizer.lr": rate}
    for rho1 in (3, 19)
    for rate in (3e-4, 1e-3)
}
# The rest of the three minutes is for preparing text, finetuning and validation. SciCite has two and a half times as
# many passages to prepare, and twice as many texts to validate on.
FAST = {
    "sciie": {"joint.budget.seconds": 80.0, "finetune.max_steps": 450, "finetune.evaluations": 5},
    "sci_cite": {"joint.budget.seconds": 35.0, "finetune.max_steps": 300, "finetune.evaluations": 3},
}


def main() -> None:
    parser = argument_parser(__doc__)
    options = parser.parse_args()
    if unknown := set(options.tasks) - set(FAST):
        parser.error(f"No settings for {', '.join(sorted(unknown))}. Valid tasks: {', '.join(FAST)}.")
    for task in options.tasks:
        run_fast(task, options)


def paper_recipe(options: Namespace, overrides: Mapping[str, Any]) -> Recipe:
    """Return `paper` with the selection of `fast`."""
    selection = {f"selection.{key}": value for key, value in resolve("fast", "tiny").selection.model_dump().items()}
    return resolve("paper", "tiny", {**selection, **overrides, **dict(options.overrides)})


def measure_rate(task: str, options: Namespace) -> float:
    """Return the tokens per second of the joint stage of `paper`, measured once for 60 seconds."""
    recipe = paper_recipe(options, {"joint.budget.seconds": 60.0, "finetune.max_steps": 1})
    folder = report_folder(JobSpec(dataset=task), recipe, [task_folder(task)], f"{task} paper rate")
    cost = read_json(folder / "report.json")["cost"]["joint"]
    rate: float = cost["tokens"] / cost["seconds"]
    figure(f"{task}_paper_rate", [rate], unit="real tokens/s")
    return rate


def run_paper(task: str, options: Namespace) -> float:
    """Return the validation score of `paper` after MINUTES."""
    rate = measure_rate(task, options)

    def score(setting: str, minutes: float, steps: int) -> float:
        tokens = int(rate * minutes * 60 * (1 - FINETUNE_SHARE))
        # The published finetuning rate is lower, because it is for more steps.
        finetune = {"finetune.optimizer.lr": 3e-4, "finetune.epochs": 10, "finetune.max_steps": steps}
        recipe = paper_recipe(options, {"joint.budget.tokens": tokens, **finetune, **PAPER[setting]})
        (run,) = train(task, f"paper {setting} {minutes:g} min", recipe, [0])
        remark(f"{task}, paper, {setting}, {minutes:g} minutes: {run.validation:.4f}")
        return run.validation

    best = max(PAPER, key=lambda setting: score(setting, TUNING_MINUTES, TUNING_STEPS))
    validation = score(best, MINUTES, STEPS)
    figure(f"{task}_paper_validation", [validation], unit=f"score after {MINUTES:.0f} min, {best}")
    return validation


def run_fast(task: str, options: Namespace) -> None:
    recipe = resolve("fast", "tiny", {"finetune.epochs": 5, **FAST[task], **dict(options.overrides)})
    scores = train(task, "fast by the clock", recipe, range(options.seeds))
    validation = [score.validation for score in scores]
    figure(f"{task}_fast_validation", validation, goal=run_paper(task, options), unit="score")
    minutes = [score.seconds / 60 for score in scores]
    unit = "min from the selection to the model"
    figure(f"{task}_fast_minutes", minutes, goal=GOAL_MINUTES, better="lower", unit=unit)


if __name__ == "__main__":
    main()
