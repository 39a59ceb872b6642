"""Run a job's plan in this process, with a generated task and selection instead of the services."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.factories import make_resolved, make_spec
from tests.unit.training.killed import DyingReporter, Killed, Run, content
from tests.unit.training.made import made_selection
from tlm_core.artifacts import ManifestRef
from tlm_core.jobs.plan import Node, Plan, plan_of
from tlm_core.jobs.spec import DatasetInput, JobRecord
from tlm_core.jobs.states import State
from tlm_core.stages import SELECT, VALIDATE
from tlm_core.training.local import LocalReporter, compute
from tlm_core.training.recipe import Recipe
from tlm_core.training.stage import DROPPED, StopRequested


def make_job(recipe: Recipe, *, others: int = 0, **spec: Any) -> JobRecord:
    data = [DatasetInput(id=f"ds_{n}", ref=ManifestRef(folder=f"t/{n}", digest=str(n + 1) * 64)) for n in range(others)]
    resolved = make_resolved(recipe=recipe, others=tuple(data))
    times = {"created_at": 0, "updated_at": 0}
    return JobRecord(id="job_1", tenant="t", state=State.RUNNING, spec=make_spec(**spec), resolved=resolved, **times)


def run_plan(
    job: JobRecord, task: Path, folder: Path, finished: Callable[[Node, Path], None] = lambda *_: None
) -> dict[str, Path]:
    """Run the plan, and return the folder of each node. finished: called after each node with the node and its folder.

    Nodes that depend on a dropped subset are dropped too, as in the services.
    """
    plan: Plan = plan_of(job)
    done: dict[str, Path] = {}
    dropped: set[str] = set()
    for node in plan.nodes:
        out, inputs = folder / node.name, {name: done[source] for name, source in node.inputs.items()}
        done[node.name] = out
        if not node.gathers and dropped & set(node.inputs.values()):
            dropped.add(node.name)
            out.mkdir(parents=True)
            continue
        if DROPPED in _run(node, inputs, task, out):
            dropped.add(node.name)
        finished(node, out)
    return done


def read_report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def check_resume(node: Node, done: Mapping[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a training stage, resume and stop it, then resume it to its end. The result must equal that in `done`."""
    monkeypatch.setattr("tlm_core.training.loop.REPORT_SECONDS", 0.0)
    params = node.params.model_copy(update={"checkpoint_steps": 2})
    run = Run(folder, node.stage, {name: done[source] for name, source in node.inputs.items()}, params)
    with pytest.raises(Killed):
        run(DyingReporter(die_at=3))
    with pytest.raises(StopRequested):
        run(LocalReporter(should_continue_at=lambda step: step < 4))
    assert (folder / "checkpoints" / "step-000000005").exists(), "it stops within one step"
    assert content(run()) == content(done[node.name])


def _run(node: Node, inputs: Mapping[str, Path], task: Path, out: Path) -> Mapping[str, Any]:
    if node.stage is VALIDATE:
        shutil.copytree(task, out)
    elif node.stage is SELECT:
        made_selection(out)
    else:
        return compute(node.stage, inputs, node.params, out)
    return {}
