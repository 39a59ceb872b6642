"""A profiler's trace of a few training steps (`profile: true` of the recipe).

The file has Chrome's trace format, gzipped. Open it in a browser with chrome://tracing or ui.perfetto.dev.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tlm_core.pulse import PULSE
from tlm_core.training.loop import Trainer

# The first steps build kernels and fill caches, so the trace starts after them.
WARM, STEPS = 5, 5


def copy_traces(source: Path, target: Path) -> None:
    """Copy the traces of an earlier stage, so that the job's last artifact, which users download, has all traces."""
    for path in source.glob("trace-*.json.gz"):
        shutil.copyfile(path, target / path.name)


@contextmanager
def traced(trainer: Trainer, stage: str) -> Iterator[None]:
    """If the recipe sets `profile`, trace up to STEPS steps of the run on rank 0, after the first WARM steps."""
    ctx = trainer.ctx
    if ctx.rank or not ctx.params.profile:
        yield
        return

    def write(profiler: torch.profiler.profile) -> None:
        with PULSE.pace(steady=False):
            profiler.export_chrome_trace(str(ctx.out / f"trace-{stage}.json.gz"))

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    schedule = torch.profiler.schedule(wait=WARM, warmup=1, active=STEPS, repeat=1)
    with torch.profiler.profile(
        activities=activities, schedule=schedule, on_trace_ready=write, record_shapes=True
    ) as profiler:
        trainer.before_step = profiler.step
        yield
