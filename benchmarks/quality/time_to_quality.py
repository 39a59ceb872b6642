"""How long recipe `fast` takes to the validation score that recipe `paper` has after half an hour.

    python -m benchmarks.quality.time_to_quality sciie sci_cite                all of it, hours, on a quiet machine
    python -m benchmarks.quality.time_to_quality sciie sci_cite --only rate    how fast `paper` trains here
    … --only paper    its runs, which may have company    … --only fast    ours by the clock, on a quiet machine

On our engine, in this process, all cores. `paper` keeps its losses and its architecture (BERT 4 x 256, post-norm,
AdamW); its schedule fills the half hour, and its share of task batches and its rate are tuned: every setting of RIVALS
is run on a part of the budget, the best on validation has the whole of it. What fits into its minutes is counted in
tokens, at the measured rate, so that its runs may wait, be stopped and go on, and have company. Each outcome is kept
under build/quality and not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from typing import Any

from benchmarks.quality.runs import FOLDER, outcome, selected
from benchmarks.report import figure, remark
from tlm_core.stages import JOINT, PREPARE
from tlm_core.training.local import run_stage
from tlm_core.training.params import JointParams, PrepareParams
from tlm_core.training.recipe import Recipe, resolve

MINUTES, GOAL = 30.0, 3.0
TUNING = 4.0  # minutes of each setting that is tried
FINETUNE_SHARE = 0.2
# Of finetuning, at most; a trial has more than its share, as after two epochs no setting can be told from another.
STEPS, TRIAL_STEPS = 1000, 400
# What is tuned: of how many batches one is a task batch, and the joint stage's rate. The published rates are for
# 150,000 steps; so short a budget wants more.
RIVALS = {
    f"rho1={rho1} lr={lr:g}": {"joint.rho1": rho1, "joint.optimizer.lr": lr} for rho1 in (3, 19) for lr in (3e-4, 1e-3)
}
# What is left of three minutes goes into preparing the texts, finetuning and validation; SciCite has two and a half
# times as many passages to prepare and twice as many texts to validate on.
FAST = {
    "sciie": {"joint.budget.seconds": 80.0, "finetune.max_steps": 450, "finetune.evaluations": 5},
    "sci_cite": {"joint.budget.seconds": 35.0, "finetune.max_steps": 300, "finetune.evaluations": 3},
}
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=sorted(FAST), help="folders under tasks/ of the shared data")
    parser.add_argument("--only", choices=("rate", "paper", "fast"))
    given = parser.parse_args()
    for part, run in {"rate": _rate, "paper": _paper, "fast": _fast}.items():
        if given.only in (part, None):
            for name in given.tasks:
                run(name)


def _rate(name: str) -> float:
    """Real tokens a second of `paper`'s joint stage, measured once."""
    kept = FOLDER / "outcomes" / name / "paper rate.json"
    if not kept.exists():
        folder = kept.with_suffix("")
        shutil.rmtree(folder, ignore_errors=True)
        task, selection = selected(name, resolve("fast", "tiny").selection)
        recipe = resolve("paper", "tiny", {"joint.budget.seconds": 60.0})
        inputs = {"task": task, "selection": selection}
        prepared = run_stage(PREPARE, inputs, PrepareParams.of(recipe), folder / "prepare")
        joint = run_stage(JOINT, {"prepared": prepared}, JointParams.of(recipe, 0), folder / "joint")
        cost = json.loads((joint / "history.json").read_text(encoding="utf-8"))["cost"]
        kept.write_text(json.dumps(cost["tokens"] / cost["seconds"]), encoding="utf-8")
        shutil.rmtree(folder)
    rate: float = json.loads(kept.read_text(encoding="utf-8"))
    figure(f"{name}_paper_rate", [rate], unit="real tokens/s")
    return rate


def _paper(name: str) -> float:
    """Its validation score at the end of its minutes."""
    task, selection = selected(name, resolve("fast", "tiny").selection)
    rate = _rate(name)

    def score(setting: str, minutes: float) -> float:
        tokens = int(rate * minutes * 60 * (1 - FINETUNE_SHARE))
        found = outcome(
            name, f"paper {setting} {minutes:g} min", task, selection, _recipe(RIVALS[setting], tokens, minutes), 0
        )
        remark(f"{name}, paper, {setting}, {minutes:g} minutes: {found['validation']:.4f}")
        return found["validation"]

    best = max(RIVALS, key=lambda setting: score(setting, TUNING))
    found = score(best, MINUTES)
    figure(f"{name}_paper_validation", [found], unit=f"score after {MINUTES:.0f} min, {best}")
    return found


def _recipe(tuned: Mapping[str, Any], tokens: int, minutes: float) -> Recipe:
    # The published finetuning rate is for more steps: so few want a higher one.
    steps = STEPS if minutes == MINUTES else TRIAL_STEPS
    finetune = {"finetune.optimizer.lr": 3e-4, "finetune.epochs": 10, "finetune.max_steps": steps}
    return resolve("paper", "tiny", {"joint.budget.tokens": tokens, **finetune, **tuned})


def _fast(name: str) -> None:
    task, selection = selected(name, resolve("fast", "tiny").selection)
    recipe = resolve("fast", "tiny", {"finetune.epochs": 5, **FAST[name]})
    ours = [outcome(name, f"fast {seed}", task, selection, recipe, seed) for seed in SEEDS]
    figure(f"{name}_fast_validation", [run["validation"] for run in ours], goal=_paper(name), unit="score")
    minutes = [run["seconds"] / 60 for run in ours]
    figure(f"{name}_fast_minutes", minutes, goal=GOAL, better="lower", unit="min from selection to model")


if __name__ == "__main__":
    main()
