"""The plan of a job: which stages it needs, on which inputs, and where they run."""

from __future__ import annotations

from dataclasses import replace

from tlm_core.jobs.nodes import Node, Plan
from tlm_core.jobs.spec import JobRecord
from tlm_core.stages import DROPPED, Place

__all__ = ["DROPPED", "Node", "Place", "Plan", "plan_of"]


def plan_of(job: JobRecord) -> Plan:
    """Return the plan of a job. It depends on the job's record alone."""
    plan = job.spec.definition.plan(job.plan_inputs)
    reused, excluded = job.resolved.reused, job.excluded_from_cache
    nodes = [
        replace(node, reusable=node.reusable and node.name not in excluded, reused=reused.get(node.name))
        for node in plan.nodes
    ]
    return replace(plan, nodes=tuple(nodes))
