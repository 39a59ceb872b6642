"""Run stages in this process, without Ray or a storage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tlm_core.training.stage import Stage, StageContext, StageParams


@dataclass
class LocalReporter:
    """Records all reports. should_continue_at: called with each reported step; returns False to stop the stage."""

    should_continue_at: Callable[[int], bool] | None = None
    steps: list[int] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    points: list[dict[str, object]] = field(default_factory=list)
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def progress(self, *, step: int, total: int, rate: float | None, unit: str, eta_seconds: float | None) -> bool:  # noqa: ARG002
        self.steps.append(step)
        self.totals.append(total)
        return self.should_continue_at is None or self.should_continue_at(step)

    def metrics(self, **values: float | int | str | None) -> None:
        self.points.append(dict(values))

    def event(self, type: str, **data: object) -> None:
        self.events.append((type, data))


@dataclass
class LocalCheckpoints:
    """Checkpoints in a local folder. A rename publishes a complete checkpoint."""

    folder: Path

    def latest(self) -> Path | None:
        return max(self.folder.glob("step-*"), default=None)

    def newest(self) -> int | None:
        folder = self.latest()
        return None if folder is None else int(folder.name.removeprefix("step-"))

    def save(self, write: Callable[[Path], None], *, step: int, metrics: Mapping[str, float | None]) -> None:  # noqa: ARG002
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        target = self.folder / f"step-{step:09d}"
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)


def run_stage(
    stage: Stage, inputs: Mapping[str, Path], params: StageParams, folder: Path, report: LocalReporter | None = None
) -> Path:
    """Run a stage, write its artifact to the new folder `folder`, and return `folder`. Raises the stage's errors."""
    compute(stage, inputs, params, folder, report)
    return folder


def compute(
    stage: Stage, inputs: Mapping[str, Path], params: StageParams, folder: Path, report: LocalReporter | None = None
) -> Mapping[str, object]:
    """Run a stage as `run_stage` does, but return the metadata of the artifact."""
    folder.mkdir(parents=True)
    scratch = folder.with_name(folder.name + ".scratch")
    scratch.mkdir(parents=True, exist_ok=True)
    checkpoints = LocalCheckpoints(scratch / "checkpoints")
    context = StageContext(inputs, params, folder, report or LocalReporter(), checkpoints, scratch=scratch)
    meta = stage.load()(context)
    shutil.rmtree(scratch)
    return meta
