"""Measure the joint step on a GPU at BERT-base shape against the published loop and Trainer, and its model FLOPs.

Without a GPU every figure is null with that reason.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from statistics import median

import torch

from benchmarks.report import alternate, figure, ratios, remark
from benchmarks.training.ours import Ours
from benchmarks.training.training_data import bert_recipe, fast_recipe, prepared
from tlm_core.training.device import peak_flops
from tlm_core.training.recipe import Recipe

SHAPE = (12, 768, 12, 3072)
BASE = {"model.layers": 12, "model.hidden": 768, "model.heads": 12}
PREFIX = {"ours": "", "fast": "fast_"}
ROWS: dict[str, tuple[float | None, str]] = {
    "gpu_joint_step_vs_published_fp32": (8.0, "x"),
    "gpu_joint_step_vs_published_bf16": (None, "x"),
    "gpu_joint_step_vs_trainer": (2.0, "x"),
    "gpu_mfu": (0.45, "share of the card's peak"),
}


def recipes(rows: int) -> dict[str, Recipe]:
    """Return our recipes at BERT-base shape. The gated block of `fast` is narrower to equal the parameter count."""
    size = {**BASE, "joint.batch_rows": rows, "joint.task_batch": rows}
    return {
        "ours": bert_recipe(**size, **{"model.intermediate": 3072}),
        "fast": fast_recipe(**size, **{"model.intermediate": 2048}),
    }


def utilization(ours: Ours, steps: int, peak: float) -> float:
    """Return the FLOPs of the step's matrix products over the peak of the card in the same time."""
    start = time.perf_counter()
    flops = ours.state_after(steps).flops
    return flops / (time.perf_counter() - start) / peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=256, help="rows of 128 tokens in a step, for all rivals")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        for name, (goal, unit) in ROWS.items():
            figure(name, [], goal=goal, unit=unit, reason="no GPU on this machine")
        return
    prepared()
    remark(f"on {torch.cuda.get_device_name()}, {options.rows} rows of 128 tokens a step")
    ours = {title: Ours(recipe) for title, recipe in recipes(options.rows).items()}
    against_published(ours, options.rows, options.steps, options.repeats)
    against_trainer(ours, options.rows, options.steps, options.repeats)
    model_flops(ours, options.steps, options.repeats)


def against_published(ours: dict[str, Ours], rows: int, steps: int, repeats: int) -> None:
    from benchmarks.training.published_loop import PublishedLoop

    forms = {"fp32": False, "bf16": True}
    loops = {kind: PublishedLoop(bf16=bf16, shape=SHAPE, batch=rows) for kind, bf16 in forms.items()}
    rivals = {f"published_{kind}": partial(loop.run, steps) for kind, loop in loops.items()}
    rates = alternate(rivals | {title: partial(rival.run, steps) for title, rival in ours.items()}, repeats)
    for title, runs in rates.items():
        figure(f"gpu_tokens_per_second_{title}", runs, unit="real tokens/s")
    for title in ours:
        for kind in forms:
            row = f"gpu_joint_step_vs_published_{kind}"
            figure(PREFIX[title] + row, ratios(rates[title], rates[f"published_{kind}"]), goal=ROWS[row][0], unit="x")


def against_trainer(ours: dict[str, Ours], rows: int, steps: int, repeats: int) -> None:
    from benchmarks.training.hf_trainer import alternate_with

    turns = {title: rival.run for title, rival in ours.items()}
    results = {}
    for form in ("eager", "compiled"):
        results[form] = alternate_with(
            SHAPE, turns, compiled=form == "compiled", batch=rows, steps=steps, repeats=repeats
        )
        figure(f"gpu_tokens_per_second_trainer_{form}", results[form]["trainer"], unit="real tokens/s")
    best = max(results.values(), key=lambda runs: median(runs["trainer"]))
    for title in ours:
        row = "gpu_joint_step_vs_trainer"
        figure(PREFIX[title] + row, ratios(best[title], best["trainer"]), goal=ROWS[row][0], unit="x")


def model_flops(ours: dict[str, Ours], steps: int, repeats: int) -> None:
    card = torch.cuda.get_device_name()
    peak = peak_flops(torch.device("cuda"))
    for title, rival in ours.items():
        shares = [utilization(rival, steps, peak) for _ in range(repeats)] if peak else []
        goal, unit = ROWS["gpu_mfu"]
        reason = None if shares else f"the peak of '{card}' is unknown"
        figure(f"{PREFIX[title]}gpu_mfu", shares, goal=goal, unit=unit, reason=reason)


if __name__ == "__main__":
    main()
