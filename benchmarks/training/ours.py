"""Our joint stage as a rival, with its own loop and batches."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.training.rival_process import serve
from benchmarks.training.training_data import bert_recipe, fast_recipe, prepared
from tlm_core.training.encoder_stages import joint_trainer
from tlm_core.training.local import LocalCheckpoints, LocalReporter
from tlm_core.training.params import JointParams
from tlm_core.training.prepared import Batch
from tlm_core.training.recipe import Budget, Recipe
from tlm_core.training.stage import StageContext


class Ours:
    """The joint stage of a recipe. Each call of `run` trains for the next steps.

    seconds: time of all calls of `run` so far. wait_seconds: time in which the loop waited for its batches.
    """

    def __init__(self, recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tlm-bench-")  # removed with this object
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
        self.wait_seconds = self.seconds = 0.0

    def _batch(self, step: int, progress: float) -> Batch:  # noqa: ARG002 - each run starts at step 0
        start = time.perf_counter()
        batch = self._batches(next(self._step), progress)
        self.wait_seconds += time.perf_counter() - start
        return batch

    def run(self, steps: int) -> float:
        """Return the real tokens per second of the next `steps` steps."""
        start = time.perf_counter()
        self.trainer.budget = Budget(steps=steps)
        state, _ = self.trainer.run()
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        self.seconds += seconds
        return state.tokens / seconds


if __name__ == "__main__":
    recipes = {"ours": bert_recipe, "fast": fast_recipe}
    serve(lambda: Ours(recipes[sys.argv[1]]()).run)
