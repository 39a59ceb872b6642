"""Measure the share of the joint step in which the loop waits for its next batch."""

from __future__ import annotations

import argparse

import torch

from benchmarks.report import figure
from benchmarks.training.ours import Ours
from benchmarks.training.training_data import bert_recipe, fast_recipe, prepared, threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    prepared()
    torch.set_num_threads(threads())
    for name, recipe in (("data_wait", bert_recipe()), ("fast_data_wait", fast_recipe())):
        ours = Ours(recipe)
        ours.run(4)
        shares = []
        for _ in range(options.repeats):
            ours.wait_seconds = ours.seconds = 0.0
            ours.run(options.steps)
            shares.append(ours.wait_seconds / ours.seconds)
        figure(name, shares, goal=0.02, better="lower", unit="share of the step")


if __name__ == "__main__":
    main()
