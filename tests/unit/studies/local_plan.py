"""A job's plan run in this process, with a made task and a made selection in place of the services."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.factories import make_resolved, make_spec
from tests.unit.training.made import made_selection
from tlm_core.artifacts import ManifestRef
from tlm_core.jobs.nodes import DatasetInput
from tlm_core.jobs.plan import DROPPED, Node, Plan, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.stages import SELECT, VALIDATE
from tlm_core.training.local import compute
from tlm_core.training.recipe import Recipe


def make_job(recipe: Recipe, *, others: int = 0, **spec: Any) -> JobRecord:
    data = [DatasetInput(id=f"ds_{n}", ref=ManifestRef(folder=f"t/{n}", digest=str(n + 1) * 64)) for n in range(others)]
    resolved = make_resolved(recipe=recipe, others=tuple(data))
    times = {"created_at": 0, "updated_at": 0}
    return JobRecord(id="job_1", tenant="t", state=State.RUNNING, spec=make_spec(**spec), resolved=resolved, **times)


def run_plan(job: JobRecord, task: Path, folder: Path) -> dict[str, Path]:
    """The folder of each node. What depends on a dropped subset is dropped, as the services do it."""
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
    return done


def _run(node: Node, inputs: Mapping[str, Path], task: Path, out: Path) -> Mapping[str, Any]:
    if node.stage is VALIDATE:
        shutil.copytree(task, out)
    elif node.stage is SELECT:
        made_selection(out)
    else:
        return compute(node.stage, inputs, node.params, out)
    return {}
