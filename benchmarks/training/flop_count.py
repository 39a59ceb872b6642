"""Compare the reported FLOPs of both architectures with PyTorch's counter."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import figure
from benchmarks.training.ours import Ours
from benchmarks.training.training_data import bert_recipe, fast_recipe, prepared, threads
from tlm_core.training.memory import MICRO_ROWS
from tlm_core.training.objective import Workers, accumulate_gradient, step_flops


def main() -> None:
    prepared()
    torch.set_num_threads(threads())
    for name, recipe in (("flops_off", bert_recipe()), ("fast_flops_off", fast_recipe())):
        trainer = Ours(recipe).trainer
        model, optimizer = trainer.model, trainer.optimizer
        differences = []
        for step in range(4):  # the fourth batch of recipe `fast` is a task batch
            batch = trainer.batches(step, 0.0)
            with FlopCounterMode(display=False) as counter:
                accumulate_gradient(model, batch, Workers(), MICRO_ROWS, "fp32", trainer.device)
                optimizer.step(1.0, batch.active)
            reported = step_flops(model.shape, batch) + optimizer.flops
            differences.append(abs(reported / counter.get_total_flops() - 1))
        figure(name, differences, goal=0.03, better="lower", unit="relative difference")


if __name__ == "__main__":
    main()
