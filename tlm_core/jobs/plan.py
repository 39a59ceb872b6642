"""The plan of a job: which stages it needs, on which inputs, and where they run.

The coordinator knows only plans and artifacts, so a new kind of job is a new plan and no new machinery.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tlm_core.jobs.nodes import DROPPED, STAGE_VERSIONS, Node, Place, Plan, tried
from tlm_core.jobs.sharing import share_tickets
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.studies import learning_curve, prune, validate_node
from tlm_core.training.params import reproducible, stage_params

__all__ = ["DROPPED", "STAGE_VERSIONS", "Node", "Place", "Plan", "plan_of"]


def plan_of(job: JobRecord) -> Plan:
    """The plan of a job, from its record alone."""
    plan, taken = _PLANS[job.spec.kind](job), job.resolved.taken
    if not job.unshared and not taken:
        return plan
    nodes = [
        replace(node, reusable=node.reusable and node.name not in job.unshared, taken=taken.get(node.name))
        for node in plan.nodes
    ]
    return replace(plan, nodes=tuple(nodes))


def train(job: JobRecord) -> Plan:
    """One chain: validate, select, prepare, then joint and finetune for each seed, evaluate, export."""
    recipe, resolved = job.resolved.recipe, job.resolved
    given = recipe.selection.definition.source == "dataset"
    selecting = given or (resolved.corpus_name is not None and recipe.selection.needs_corpus)
    joint = recipe.joint.enabled

    nodes = [validate_node(job)]
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
        node = Node(f"finetune.s{seed}", "finetune", Place.WORKERS, params=params, inputs=inputs)
        nodes.extend(tried(node, recipe.finetune.rates))
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


_PLANS: Mapping[str, Callable[[JobRecord], Plan]] = {
    "train": train,
    "learning_curve": learning_curve,
    "prune": lambda job: prune(job, train(job)),
    "share_tickets": share_tickets,
}
