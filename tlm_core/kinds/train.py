"""Kind `train`: train a classifier, one run of joint stage and finetuning for each seed."""

from __future__ import annotations

from typing import Any

from tlm_core.jobs.nodes import (
    Node,
    Plan,
    PlanInputs,
    finetune_nodes,
    joint_node,
    prepare_node,
    select_node,
    validate_nodes,
)
from tlm_core.kinds.kind import Kind, KindOptions
from tlm_core.stages import EVALUATE, EXPORT
from tlm_core.training.params import CardRecipe, ExportParams, SeedsParams


class TrainOptions(KindOptions):
    """A `train` job has no options."""


def chain(inputs: PlanInputs[Any]) -> list[Node]:
    """validate → select → prepare → (joint → finetune, for each seed) → evaluate."""
    recipe, seeds = inputs.recipe, inputs.seeds
    select = select_node(inputs, "validate")
    nodes = [*validate_nodes(inputs), *([select] if select else []), prepare_node(recipe, "validate", select)]
    gathered = {"prepared": "prepare", "task": "validate"}
    for seed in seeds:
        start = {}
        if recipe.joint.enabled:
            nodes.append(joint_node(recipe, seed, f"joint.s{seed}"))
            start = {"joint": f"joint.s{seed}"}
        nodes += finetune_nodes(recipe, seed, f"finetune.s{seed}", {"prepared": "prepare", **start})
        gathered[f"finetune.s{seed}"] = f"finetune.s{seed}"
    return [*nodes, Node("evaluate", EVALUATE, SeedsParams(seeds=seeds), gathered)]


def plan(inputs: PlanInputs[Any]) -> Plan:
    """The chain, and the export of the best seed's model."""
    nodes = chain(inputs)
    export = ExportParams(recipe=CardRecipe.of(inputs.recipe))
    return Plan((*nodes, Node("export", EXPORT, export, {**nodes[-1].inputs, "evaluate": "evaluate"})))


KIND = Kind("train", "train a classifier", TrainOptions, plan, extends_train=True)
