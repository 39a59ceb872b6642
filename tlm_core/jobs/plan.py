"""The plan of a job: which stages it needs, on which inputs, and where they run.

The coordinator knows only plans and artifacts, so a new kind of job is a new plan and no new machinery.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tlm_core.artifacts import artifact_id
from tlm_core.jobs.spec import JobRecord
from tlm_core.training.params import VERSIONS, reproducible, stage_params

# Raised whenever a change of code changes what the stage produces: old artifacts are then not taken again.
STAGE_VERSIONS: Mapping[str, int] = {
    "validate": 1,
    "select": 3,
    **VERSIONS,
}


class Place(StrEnum):
    """Where a stage runs."""

    COORDINATOR = "coordinator"
    RETRIEVER = "retriever"
    WORKERS = "workers"


@dataclass(frozen=True)
class Node:
    """One stage of a job. inputs: name → node whose artifact it is; fixed: name → digest known beforehand.

    reusable: false where the result depends on the clock, so that no other job may take it from the cache.
    group: nodes of one group run on the same workers in one submission, since starting workers costs more than a
    short stage does.
    """

    name: str
    stage: str
    place: Place
    params: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)
    reusable: bool = True
    group: str = "main"

    def artifact_id(self, digests: Mapping[str, str], job_id: str) -> str:
        """Id of this node's artifact, given the manifest digests of the nodes before it."""
        inputs = {name: digests[node] for name, node in self.inputs.items()} | dict(self.fixed)
        params = dict(self.params) if self.reusable else {**self.params, "job": job_id}
        return artifact_id(self.stage, STAGE_VERSIONS[self.stage], params, inputs)


@dataclass(frozen=True)
class Plan:
    """Nodes in an order in which each comes after its inputs; the last one is the job's result."""

    nodes: tuple[Node, ...]

    @property
    def final(self) -> Node:
        return self.nodes[-1]

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def ready(self, done: Mapping[str, Any]) -> list[Node]:
        """Nodes not done whose inputs all are."""
        return [n for n in self.nodes if n.name not in done and all(i in done for i in n.inputs.values())]

    def group(self, name: str) -> list[Node]:
        """The nodes that the workers of one submission run, in order."""
        return [n for n in self.nodes if n.place is Place.WORKERS and n.group == name]


def plan_of(job: JobRecord) -> Plan:
    """The plan of a job, from its record alone."""
    return _PLANS[job.spec.kind](job)


def _train(job: JobRecord) -> Plan:
    recipe, resolved = job.resolved.recipe, job.resolved
    given = recipe.selection.selector == "given"
    selecting = given or (resolved.corpus_name is not None and recipe.selection.needs_corpus)
    joint = recipe.joint.enabled

    nodes = [
        Node(
            "validate",
            "validate",
            Place.COORDINATOR,
            params={"options": resolved.dataset_options},
            fixed={"dataset": resolved.dataset.digest},
        )
    ]
    if selecting:
        nodes.append(
            Node(
                "select",
                "select",
                Place.RETRIEVER,
                params={"selection": recipe.selection.model_dump(mode="json"), "seed": 0},
                inputs={"task": "validate"},
                fixed={} if given else {"corpus": f"{resolved.corpus_name}@{resolved.corpus_version}"},
            )
        )
    prepare_inputs = {"task": "validate"} | ({"selection": "select"} if selecting else {})
    nodes.append(
        Node("prepare", "prepare", Place.WORKERS, params=stage_params("prepare", recipe, None), inputs=prepare_inputs)
    )
    finetuned = {}
    for seed in job.spec.seeds:
        inputs = {"prepared": "prepare"}
        if joint:
            params = stage_params("joint", recipe, seed)
            nodes.append(
                Node(
                    f"joint.s{seed}",
                    "joint",
                    Place.WORKERS,
                    params=params,
                    inputs=inputs,
                    reusable=reproducible("joint", recipe),
                )
            )
            inputs = inputs | {"joint": f"joint.s{seed}"}
        params = stage_params("finetune", recipe, seed)
        nodes.append(Node(f"finetune.s{seed}", "finetune", Place.WORKERS, params=params, inputs=inputs))
        finetuned[f"finetune.s{seed}"] = f"finetune.s{seed}"
    evaluate_inputs = {"prepared": "prepare", "task": "validate"} | finetuned
    if joint:
        evaluate_inputs |= {f"joint.s{seed}": f"joint.s{seed}" for seed in job.spec.seeds}
    nodes.append(
        Node(
            "evaluate", "evaluate", Place.WORKERS, params=stage_params("evaluate", recipe, None), inputs=evaluate_inputs
        )
    )
    export_inputs = {"prepared": "prepare", "task": "validate", "evaluate": "evaluate"} | finetuned
    nodes.append(
        Node("export", "export", Place.WORKERS, params=stage_params("export", recipe, None), inputs=export_inputs)
    )
    return Plan(tuple(nodes))


_PLANS: Mapping[str, Callable[[JobRecord], Plan]] = {"train": _train}
