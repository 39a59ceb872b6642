"""The stages that the coordinator runs itself: they need neither workers nor torch."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.common.situation import folder_prefix
from services.trainer.scratch import work_folder
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.jobs.plan import DROPPED, Node
from tlm_core.jobs.spec import JobRecord
from tlm_core.tasks.options import DatasetOptions


def run_local(
    artifacts: ArtifactStore,
    scratch: Path,
    job: JobRecord,
    node: Node,
    artifact: str,
    inputs: Mapping[str, ManifestRef],
) -> ManifestRef:
    """Run a node of Place.COORDINATOR. Raises InvalidDataset with every fault, InvalidRequest."""
    with work_folder(scratch, f"{job.id}-{job.attempt}-{node.name}") as work:
        match node.stage:
            case "validate":
                ref = next(data.ref for data in job.resolved.data if data.ref.digest == node.fixed["dataset"])
                meta = _validate(artifacts.localize(ref), work, node.params)
            case "sizes":
                meta = sizes(artifacts.localize(inputs["task"]), work, node.params)
            case "subset":
                meta = subset(
                    artifacts.localize(inputs["task"]), artifacts.localize(inputs["sizes"]), work, node.params
                )
            case "merge":
                meta = merge({name: artifacts.localize(ref) for name, ref in inputs.items()}, work, node.params)
            case _:
                raise ValueError(f"the coordinator has no stage '{node.stage}'")
        folder = f"{folder_prefix(job, artifact)}{job.attempt}-{uuid.uuid4().hex[:8]}"
        return artifacts.write(folder, work, artifact=artifact, stage=node.stage, meta=meta)


def _validate(source: Path, out: Path, params: Mapping[str, Any]) -> dict[str, Any]:
    """Read and check the job's data set, cut missing splits, write the task."""
    from tlm_core.tasks.validate import write_task

    write_task(source, out, DatasetOptions(**params["options"]))
    return {}


def sizes(task: Path, out: Path, params: Mapping[str, Any]) -> dict[str, Any]:
    """Write `sizes.json`: how many texts each size of a learning curve means, and which sizes are left out, and why."""
    from tlm_core.studies.subsets import sizes_of
    from tlm_core.tasks.task import Task

    found = [asdict(size) for size in sizes_of(Task.read(task), params["sizes"], params["seeds"])]
    (out / "sizes.json").write_text(json.dumps(found), encoding="utf-8")
    return {"sizes": len(found)}


def subset(task: Path, told: Path, out: Path, params: Mapping[str, Any]) -> dict[str, Any]:
    """Write the task with a part of its train split, or a note that this size is left out."""
    from tlm_core.studies.subsets import subset as cut
    from tlm_core.tasks.task import Task

    found = json.loads((told / "sizes.json").read_text(encoding="utf-8"))
    size = next(size for size in found if size["asked"] == params["size"])
    if size["dropped"]:
        (out / "dropped.json").write_text(json.dumps({"reason": size["dropped"]}), encoding="utf-8")
        return {DROPPED: size["dropped"]}
    cut(Task.read(task), size["rows"], params["seed"]).write(out)
    return {"rows": size["rows"]}


def merge(tasks: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> dict[str, Any]:
    """Write one task that holds all rows of several. tasks: `task.0`, `task.1`, …"""
    from tlm_core.tasks.merge import merge as write
    from tlm_core.tasks.task import Task

    names: list[str] = params["names"]
    write([Task.read(tasks[f"task.{number}"]) for number in range(len(names))], names, out)
    return {"tasks": len(names)}
