"""Kind `train`: train a classifier, one run of joint stage and finetuning for each seed."""

from __future__ import annotations

from tlm_core.jobs.nodes import train_nodes
from tlm_core.jobs.plan import Node, Plan
from tlm_core.jobs.spec import KindOptions, PlanInputs
from tlm_core.kinds.kind import Kind
from tlm_core.stages import EXPORT
from tlm_core.training.params import CardRecipe, ExportParams


class TrainOptions(KindOptions):
    """A `train` job has no options."""


def plan(inputs: PlanInputs[KindOptions]) -> Plan:
    """Train and evaluate, then export the best seed's model."""
    nodes = train_nodes(inputs)
    export = ExportParams(recipe=CardRecipe.of(inputs.recipe))
    return Plan((*nodes, Node("export", EXPORT, export, {**nodes[-1].inputs, "evaluate": "evaluate"})))


KIND = Kind("train", "train a classifier", TrainOptions, plan, extends_train=True)
