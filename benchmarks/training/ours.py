"""Our joint stage as a rival: the stage's own loop over the stage's own batches."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.training.apart import answer
from benchmarks.training.data import bert_recipe, fast_recipe, prepared
from tlm_core.training.local import LocalCheckpoints, LocalReporter
from tlm_core.training.params import JointParams
from tlm_core.training.prepared import Batch
from tlm_core.training.recipe import Budget, Recipe
from tlm_core.training.stage import StageContext
from tlm_core.training.stages import joint_trainer
from tlm_core.training.state import TrainState


class Ours:
    """The joint stage of `recipe`, run some steps at a time. rank, world_size: where a process group stands.

    waited: seconds that the loop's own thread spent in making batches, over all steps so far. spent: seconds of all.
    """

    def __init__(self, recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tlm-bench-")  # gone with this object
        folder = Path(self._folder.name)
        context = StageContext(
            inputs={"prepared": prepared()},
            params=JointParams.of(recipe, 0),
            out=folder,
            report=LocalReporter(),
            checkpoints=LocalCheckpoints(folder / "checkpoints"),
            rank=rank,
            world_size=world_size,
            scratch=folder,
        )
        self.trainer = joint_trainer(context)
        self._batches = self.trainer.batches
        self._step = itertools.count()
        self.trainer.batches = self._batch
        self.waited = self.spent = 0.0

    def _batch(self, step: int, progress: float) -> Batch:  # noqa: ARG002 - each run of the loop counts from 0 again
        began = time.perf_counter()
        batch = self._batches(next(self._step), progress)
        self.waited += time.perf_counter() - began
        return batch

    def state_after(self, steps: int) -> TrainState:
        """What the loop counted over `steps` more steps: batches, loss, gradient, update and reports."""
        self.trainer.budget = Budget(steps=steps)
        state, _ = self.trainer.run()
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()
        return state

    def run(self, steps: int) -> float:
        """Real tokens a second over `steps` more steps."""
        began = time.perf_counter()
        state = self.state_after(steps)
        spent = time.perf_counter() - began
        self.spent += spent
        return state.tokens / spent


if __name__ == "__main__":
    recipes = {"ours": bert_recipe, "fast": fast_recipe}
    answer(lambda: Ours(recipes[sys.argv[1]]()).run)
