"""Measure how long the joint step waits for its batch. Compare the reported FLOPs with PyTorch's counter."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import figure
from benchmarks.training.ours import Ours
from benchmarks.training.training_data import bert_recipe, fast_recipe, prepared, threads
from tlm_core.training.memory import MICRO_ROWS
from tlm_core.training.objective import Workers, accumulate_gradient, step_flops
from tlm_core.training.recipe import Recipe


def flop_differences(recipe: Recipe) -> list[float]:
    """Return |reported / counted FLOPs - 1| for each of 4 steps. The fourth batch of recipe `fast` is a task batch."""
    trainer = Ours(recipe).trainer
    model, optimizer = trainer.model, trainer.optimizer
    differences = []
    for step in range(4):
        batch = trainer.batches(step, 0.0)
        with FlopCounterMode(display=False) as counter:
            accumulate_gradient(model, batch, Workers(), MICRO_ROWS, "fp32", trainer.device)
            optimizer.step(1.0, batch.active)
        reported = step_flops(model.shape, batch) + optimizer.flops
        differences.append(abs(reported / counter.get_total_flops() - 1))
    return differences


def wait_shares(recipe: Recipe) -> list[float]:
    """Return for each of 5 runs the share of its time in which the loop waits for its next batch."""
    ours = Ours(recipe)
    ours.run(4)
    shares = []
    for _ in range(5):
        ours.wait_seconds = ours.seconds = 0.0
        ours.run(12)
        shares.append(ours.wait_seconds / ours.seconds)
    return shares


def main() -> None:
    prepared()
    torch.set_num_threads(threads())
    for prefix, recipe in (("", bert_recipe()), ("fast_", fast_recipe())):
        differences = flop_differences(recipe)
        figure(f"{prefix}flops_off", differences, goal=0.03, better="lower", unit="relative difference")
        shares = wait_shares(recipe)
        figure(f"{prefix}data_wait", shares, goal=0.02, better="lower", unit="share of the step")


if __name__ == "__main__":
    main()
