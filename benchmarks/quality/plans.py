"""A job's whole plan in this process, node by node; each node's artifact is kept, so a run that was stopped goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.runs import corpus_index
from benchmarks.report import remark
from tlm_core.artifacts import ManifestRef
from tlm_core.compression.params import TicketParams
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.nodes import DatasetInput, Node
from tlm_core.jobs.plan import DROPPED, plan_of
from tlm_core.jobs.spec import JobRecord, JobSpec, Resolved
from tlm_core.jobs.states import State
from tlm_core.selection.interface import Corpus
from tlm_core.selection.select import select
from tlm_core.stages import VALIDATE
from tlm_core.tasks.task import Task
from tlm_core.training.local import compute
from tlm_core.training.params import SelectParams
from tlm_core.training.recipe import Recipe
from tlm_core.training.state import WEIGHTS

META = "node.json"  # written last beside a node's folder: it is whole, and what it told


def run(spec: JobSpec, recipe: Recipe, tasks: Sequence[Path], folder: Path) -> Path:
    """The folder of the plan's last node. tasks: of the job's data sets, in their order, as `validate` leaves them.

    Raises InvalidRequest for what the job's kind cannot do, and whatever a stage raises.
    """
    spec.check(recipe)
    plan = plan_of(_record(spec, recipe, len(tasks)))
    done: dict[str, Path] = {}
    dropped: set[str] = set()
    for number, node in enumerate(plan.nodes):
        out = folder / node.name
        done[node.name] = out
        meta = out.with_name(f"{out.name}.{META}")
        if not meta.exists():
            remark(f"{folder.name}: {node.name} ({number + 1} of {len(plan.nodes)})")
            shutil.rmtree(out, ignore_errors=True)
            gone = not node.gathers and bool(dropped & set(node.inputs.values()))
            inputs = {name: done[source] for name, source in node.inputs.items()}
            began = time.perf_counter()
            told = {DROPPED: "an input was"} if gone else _run(node, inputs, tasks, out)
            out.mkdir(parents=True, exist_ok=True)
            meta.write_text(json.dumps({**told, "seconds": time.perf_counter() - began}), encoding="utf-8")
        if DROPPED in json.loads(meta.read_text(encoding="utf-8")):
            dropped.add(node.name)
    return done[plan.final.name]


def free(folder: Path) -> None:
    """Remove all weights under a finished run: histories, masks and reports are what is looked at later."""
    for path in folder.rglob(WEIGHTS):
        path.unlink()


def _run(node: Node, inputs: Mapping[str, Path], tasks: Sequence[Path], out: Path) -> Mapping[str, Any]:
    if node.stage is VALIDATE:
        number = int(node.fixed["dataset"][0])
        shutil.copytree(tasks[number], out)
        return {}
    if isinstance(node.params, SelectParams):
        selection, parts = node.params.selection, out.with_name(f"{out.name}.parts")
        select(Task.read(inputs["task"]), Corpus("shared", "1", corpus_index()), selection, out, seed=0, scratch=parts)
        shutil.rmtree(parts, ignore_errors=True)
        return {}
    meta = compute(node.stage, inputs, node.params, out)
    if isinstance(node.params, TicketParams) and node.params.which != "winning":
        (out / WEIGHTS).unlink()  # only its history and mask are read, and the weights of large encoders fill the disk
    return meta


def _record(spec: JobSpec, recipe: Recipe, tasks: int) -> JobRecord:
    """The record that a gateway would have written."""
    if tasks < 1:
        raise InvalidRequest("a job needs a task")
    refs = [ManifestRef(folder=f"task/{number}", digest=str(number) * 64) for number in range(tasks)]
    others = tuple(DatasetInput(id=f"ds_{number}", ref=ref) for number, ref in enumerate(refs[1:], start=1))
    corpus = {"corpus_name": "shared", "corpus_version": "1"} if recipe.selection.needs_corpus else {}
    resolved = Resolved(dataset_id="ds_0", dataset=refs[0], others=others, recipe=recipe, **corpus)
    times = {"created_at": 0.0, "updated_at": 0.0}
    return JobRecord(id="job_0", tenant="default", state=State.RUNNING, spec=spec, resolved=resolved, **times)
