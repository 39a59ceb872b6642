"""A profiler's trace of a few training steps (`profile: true` of the recipe), to be opened in a browser.

The file is Chrome's trace format, gzipped: chrome://tracing and ui.perfetto.dev read it as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tlm_core.training.loop import Trainer
from tlm_core.training.params import TrainParams
from tlm_core.training.prepared import Batch
from tlm_core.training.stage import StageContext

# The first steps build kernels and fill caches, which later ones do not.
WARM, STEPS = 5, 5


def trace_path(ctx: StageContext[TrainParams], stage: str) -> Path | None:
    """Where this worker leaves the trace of a stage; None if it is not to."""
    return ctx.out / f"trace-{stage}.json.gz" if ctx.params.profile and not ctx.rank else None


def copy_traces(source: Path, target: Path) -> None:
    """Hand the traces of an earlier stage on, so that the job's last artifact, which users download, has them."""
    for path in source.glob("trace-*.json.gz"):
        shutil.copyfile(path, target / path.name)


@contextmanager
def traced(trainer: Trainer, path: Path | None) -> Iterator[None]:
    """While this lasts, the trainer's run leaves a trace of up to STEPS steps in `path`; None leaves none.

    The first WARM steps are left out; a run that has no others leaves no trace.
    """
    if path is None:
        yield
        return
    whole = trainer.batches
    trace = _Trace(whole, path)
    trainer.batches = trace
    try:
        yield
    finally:
        trainer.batches = whole
        trace.close()


class _Trace:
    """Batches, asked for at the beginning of each step; so it knows where a step begins."""

    def __init__(self, batches: Callable[[int, float], Batch], path: Path) -> None:
        self._batches = batches
        self._path = path
        self._asked = 0
        self._profiler: Any = None

    def __call__(self, step: int, progress: float) -> Batch:
        if self._asked == WARM:
            self._start()
        elif self._asked == WARM + STEPS:
            self.close()
        self._asked += 1
        return self._batches(step, progress)

    def _start(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self._profiler.start()

    def close(self) -> None:
        """End the trace, if it has begun and not ended, and write it."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
            profiler.export_chrome_trace(str(self._path))
