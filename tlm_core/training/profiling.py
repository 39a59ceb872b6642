"""A profiler's trace of a few training steps (`profile: true` of the recipe), for a browser.

The file has Chrome's trace format, gzipped. chrome://tracing and ui.perfetto.dev read it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tlm_core.pulse import PULSE
from tlm_core.training.loop import Trainer
from tlm_core.training.params import TrainParams
from tlm_core.training.stage import StageContext

# The first steps build kernels and fill caches, so the trace starts after them.
WARM, STEPS = 5, 5


def trace_path(ctx: StageContext[TrainParams], stage: str) -> Path | None:
    """Return the path of a stage's trace, or None if this worker writes none."""
    return ctx.out / f"trace-{stage}.json.gz" if ctx.params.profile and not ctx.rank else None


def copy_traces(source: Path, target: Path) -> None:
    """Copy the traces of an earlier stage, so that the job's last artifact, which users download, has them."""
    for path in source.glob("trace-*.json.gz"):
        shutil.copyfile(path, target / path.name)


@contextmanager
def traced(trainer: Trainer, path: Path | None) -> Iterator[None]:
    """Trace up to STEPS steps of the trainer's run after the first WARM steps. A None path traces nothing."""
    if path is None:
        yield
        return
    trace = _Trace(path)
    trainer.before_step = trace.step
    try:
        yield
    finally:
        trace.close()


class _Trace:
    """Starts and stops the profiler before certain steps."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps = 0
        self._profiler: torch.profiler.profile | None = None

    def step(self) -> None:
        if self._steps == WARM:
            self._start()
        elif self._steps == WARM + STEPS:
            self.close()
        self._steps += 1

    def _start(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self._profiler.start()

    def close(self) -> None:
        """Stop the profiler if it runs, and write the trace."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            with PULSE.pace(steady=False):
                profiler.stop()
                profiler.export_chrome_trace(str(self._path))
