"""Kind `train`: train a classifier, one run of joint stage and finetuning for each seed."""

from __future__ import annotations

from tlm_core.jobs.nodes import baseline_node, refit_linear_node, train_nodes, validate_nodes
from tlm_core.jobs.plan import Node, Plan
from tlm_core.jobs.spec import KindOptions, PlanInputs
from tlm_core.kinds.kind import Kind
from tlm_core.linear.params import BaselineParams
from tlm_core.stages import EVALUATE_LINEAR, EXPORT, EXPORT_LINEAR
from tlm_core.training.params import CardRecipe, ExportParams


class TrainOptions(KindOptions):
    """A `train` job has no options."""


def plan(inputs: PlanInputs[KindOptions]) -> Plan:
    """Return a plan that trains, evaluates and exports models. At the scale `instant`: only the linear model."""
    if inputs.recipe.scale == "instant":
        return _linear_plan(inputs)
    nodes = train_nodes(inputs, ensemble=inputs.recipe.ensemble, refit=inputs.recipe.refit)
    export = ExportParams(recipe=CardRecipe.of(inputs.recipe))
    evaluate = nodes[-1]
    inputs_of_export = {**evaluate.inputs, "evaluate": "evaluate"}
    return Plan((*nodes, Node("export", EXPORT, export, inputs_of_export, group=evaluate.group)))


def _linear_plan(inputs: PlanInputs[KindOptions]) -> Plan:
    """Return the plan of a job that trains the linear model alone."""
    task, refit = {"task": "validate", "baseline": "baseline"}, []
    if inputs.recipe.refit:
        refit = [refit_linear_node(task, "main")]
        task["refit_linear"] = "refit_linear"
    return Plan(
        (
            *validate_nodes(inputs),
            baseline_node("main"),
            *refit,
            Node("evaluate", EVALUATE_LINEAR, BaselineParams(), task),
            Node("export", EXPORT_LINEAR, BaselineParams(), {**task, "evaluate": "evaluate"}),
        )
    )


KIND = Kind("train", "train a classifier", TrainOptions, plan, extends_train=True, instant=True)
