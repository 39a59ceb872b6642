"""The whole chain in this process, without Ray or storage: for tests and benchmarks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tlm_core.jobs.nodes import Node, Place, tried
from tlm_core.stages import STAGES
from tlm_core.training.params import stage_params
from tlm_core.training.recipe import Recipe
from tlm_core.training.stage import StageContext


@dataclass
class LocalReporter:
    """Keeps what it is told. keep_going: asked with the step at every report; False asks the stage to stop."""

    keep_going: Callable[[int], bool] | None = None
    steps: list[int] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def progress(self, *, step: int, total: int, rate: float | None, unit: str, eta_seconds: float | None) -> bool:  # noqa: ARG002
        self.steps.append(step)
        return self.keep_going is None or self.keep_going(step)

    def metrics(self, **values: float | int | str | None) -> None:
        self.points.append(dict(values))

    def event(self, type: str, **data: Any) -> None:
        self.events.append((type, data))


@dataclass
class LocalCheckpoints:
    """Checkpoints as folders, moved into place whole."""

    folder: Path

    def latest(self) -> Path | None:
        found = sorted(self.folder.glob("step-*"))
        return found[-1] if found else None

    def newest(self) -> int | None:
        found = self.latest()
        return None if found is None else int(found.name.removeprefix("step-"))

    def save(self, write: Callable[[Path], None], *, step: int, metrics: Mapping[str, float | None]) -> None:  # noqa: ARG002
        made = self.folder / "making"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        write(made)
        target = self.folder / f"step-{step:09d}"
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def run_stage(
    stage: str,
    inputs: Mapping[str, Path],
    params: Mapping[str, Any],
    folder: Path,
    report: LocalReporter | None = None,
) -> Path:
    """Run the stage into `folder` and return it. Raises whatever the stage raises."""
    folder.mkdir(parents=True)
    scratch = folder.with_name(folder.name + ".scratch")
    scratch.mkdir(parents=True, exist_ok=True)
    checkpoints = LocalCheckpoints(scratch / "checkpoints")
    context = StageContext(
        inputs=inputs,
        params=params,
        out=folder,
        report=report or LocalReporter(),
        checkpoints=checkpoints,
        scratch=scratch,
    )
    STAGES[stage](context)
    shutil.rmtree(scratch)
    return folder


def run_chain(
    task: Path,
    selection: Path | None,
    recipe: Recipe,
    seeds: Iterable[int],
    workdir: Path,
    *,
    told: Callable[[str, float], None] | None = None,
) -> dict[str, Path]:
    """prepare, then joint and finetune for each seed, evaluate, export; returns the folder of each by plan node.

    selection: None trains on the task alone. told: hears each node's name and seconds when it is done.
    """
    done: dict[str, Path] = {}

    def step(node: str, stage: str, inputs: Mapping[str, Path], params: Mapping[str, Any] | None = None) -> None:
        began = time.perf_counter()
        done[node] = run_stage(stage, inputs, params or stage_params(stage, recipe), workdir / node)
        if told:
            told(node, time.perf_counter() - began)

    step("prepare", "prepare", {"task": task, **({"selection": selection} if selection else {})})
    prepared = {"prepared": done["prepare"]}
    seeds = list(seeds)
    for seed in seeds:
        if recipe.joint.enabled:
            step(f"joint.s{seed}", "joint", prepared, stage_params("joint", recipe, seed))
        before = {"joint": f"joint.s{seed}"} if recipe.joint.enabled else {}
        params = stage_params("finetune", recipe, seed)
        node = Node(f"finetune.s{seed}", "finetune", Place.WORKERS, params, {"prepared": "prepare", **before})
        for one in tried(node, recipe.finetune.rates):
            step(one.name, one.stage, {name: done[source] for name, source in one.inputs.items()}, one.params)
    tuned = {f"finetune.s{seed}": done[f"finetune.s{seed}"] for seed in seeds}
    step("evaluate", "evaluate", {**prepared, "task": task, **tuned})
    step("export", "export", {**prepared, "task": task, "evaluate": done["evaluate"], **tuned})
    return done
