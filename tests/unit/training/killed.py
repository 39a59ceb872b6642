"""Stages that are killed or stopped, and run again on the same folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlm_core.stages import FINETUNE, JOINT
from tlm_core.training.local import LocalCheckpoints, LocalReporter
from tlm_core.training.params import FinetuneParams, JointParams
from tlm_core.training.recipe import Recipe
from tlm_core.training.stage import Stage, StageContext, StageParams


class Killed(Exception):
    """Simulates the death of a process."""


@dataclass
class DyingReporter(LocalReporter):
    """Kills the run at the report of step `die_at`. Tests report at every step."""

    die_at: int = 10**9

    def metrics(self, **values: float | int | str | None) -> None:
        super().metrics(**values)
        if int(values["step"] or 0) >= self.die_at:
            raise Killed


@dataclass
class Run:
    """A stage that can run repeatedly on the same folders."""

    folder: Path
    stage: Stage
    inputs: Mapping[str, Path]
    params: StageParams

    def __call__(self, reporter: LocalReporter | None = None) -> Path:
        out = self.folder / f"out{len(list(self.folder.glob('out*')))}"
        out.mkdir(parents=True)
        context = StageContext(
            inputs=self.inputs,
            params=self.params,
            out=out,
            report=reporter or LocalReporter(),
            checkpoints=LocalCheckpoints(self.folder / "checkpoints"),
            scratch=self.folder,
        )
        self.stage.load()(context)
        return out


def content(folder: Path) -> dict[str, Any]:
    """Return what must be equal: the bytes of the weights, and the history without seconds."""
    history = json.loads((folder / "history.json").read_text())
    cost = {name: value for name, value in history.pop("cost").items() if "seconds" not in name}
    history.pop("joint", None)
    return {"weights": (folder / "model.safetensors").read_bytes(), "cost": cost, "history": history}


def run_of(
    folder: Path, prepared: Path, recipe: Recipe, stage: str = "joint", inputs: Mapping[str, Path] | None = None
) -> Run:
    """Return a stage of the recipe with seed 5."""
    params = {"joint": JointParams, "finetune": FinetuneParams}[stage].of(recipe, 5)
    return Run(folder, {"joint": JOINT, "finetune": FINETUNE}[stage], {"prepared": prepared, **(inputs or {})}, params)
