"""The plan of a job: which stages it needs, on which inputs, and where they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tlm_core.jobs.nodes import Node, Plan, PlanInputs
from tlm_core.jobs.options import LearningCurve, Prune
from tlm_core.jobs.spec import JobRecord
from tlm_core.kinds import learning_curve, prune, share_tickets, train
from tlm_core.stages import DROPPED, Place

__all__ = ["DROPPED", "Node", "Place", "Plan", "plan_of"]

_PLANS: Mapping[str, Callable[[PlanInputs[Any]], Plan]] = {
    "train": train.plan,
    "learning_curve": learning_curve.plan,
    "prune": prune.plan,
    "share_tickets": share_tickets.plan,
}


def plan_of(job: JobRecord) -> Plan:
    """Return the plan of a job. It depends on the job's record alone."""
    plan, reused = _PLANS[job.spec.kind](_inputs(job)), job.resolved.reused
    if not job.excluded_from_cache and not reused:
        return plan
    nodes = [
        replace(
            node,
            reusable=node.reusable and node.name not in job.excluded_from_cache,
            reused=reused.get(node.name),
        )
        for node in plan.nodes
    ]
    return replace(plan, nodes=tuple(nodes))


def _inputs(job: JobRecord) -> PlanInputs[Any]:
    spec, resolved = job.spec, job.resolved
    options: Any = None
    names: tuple[str, ...] = (spec.dataset,)
    if spec.kind == "learning_curve":
        options = spec.learning_curve or LearningCurve()
    elif spec.kind == "prune":
        options = spec.prune or Prune()
    elif spec.share_tickets is not None:
        options = spec.share_tickets
        options = options.model_copy(update={"tickets": options.tickets | resolved.tickets})
        names = (spec.dataset, *options.others)
    return PlanInputs(options, resolved.recipe, spec.seeds, resolved.datasets, names, resolved.corpus)
