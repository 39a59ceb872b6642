"""The choice among finetunings of one start that differ in their learning rate."""

from __future__ import annotations

import json
import shutil
from typing import Any

from tlm_core.artifacts import MANIFEST
from tlm_core.tasks.metrics import best_of
from tlm_core.training.params import ChooseParams
from tlm_core.training.stage import StageContext
from tlm_core.training.state import HISTORY, read_history


def choose(ctx: StageContext[ChooseParams]) -> dict[str, Any]:
    """Write all that the try with the best validation score left; the first wins ties.

    Its history has the cost of all tries, the rate beside the best score, and under `tries` what each reached.
    Inputs: `try.0`, `try.1`, … Parameter `rates`: of each.
    """
    if ctx.rank:
        return {}
    folders = [ctx.inputs[f"try.{number}"] for number in range(len(ctx.params.rates))]
    histories = [read_history(folder) for folder in folders]
    tries = [{**found["best"], "lr": lr} for lr, found in zip(ctx.params.rates, histories, strict=True)]
    best = best_of([one["score"] for one in tries])
    cost = {name: sum(found["cost"][name] for found in histories) for name in histories[best]["cost"]}
    shutil.copytree(folders[best], ctx.out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    history = {**histories[best], "cost": cost, "best": tries[best], "tries": tries}
    (ctx.out / HISTORY).write_text(json.dumps(history), encoding="utf-8")
    return {"lr": tries[best]["lr"]}
