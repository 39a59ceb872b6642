"""Curves of a job for its charts: losses, validation score, tokens per second, learning rate, by step.

While a stage runs its points are what the workers tell, of which the oldest are dropped in a long run. Once it is done
they come from the history that its artifact keeps, which is whole, also of what an earlier job or attempt has trained;
its speed alone stands in no history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from services.api.results import refs_of
from services.api.series import series_of
from services.common.jobstore import JobStore
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import TLMError
from tlm_core.jobs.plan import Node, Plan, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.training.params import TrainParams

STAGES = ("joint", "finetune")
_SHOWN = ("mlm", "task", "tokens_per_second", "score", "learning_rate")
_POINTS = 400
# Studies have a node for each size and seed; more lines than these nobody can tell apart.
_MOST_LINES = 12

Line = dict[str, list[float]]


def stages_of(plan: Plan) -> list[str]:
    """The stages of a plan that have curves, in order."""
    return [stage for stage in STAGES if any(node.stage.name == stage for node in plan.nodes)]


def peak_rate(node: Node) -> float:
    """AdamW's highest learning rate in a node that trains; its history tells the share of it."""
    assert isinstance(node.params, TrainParams)
    return node.params.optimizer.lr


def curves(
    jobs: JobStore, artifacts: ArtifactStore, job: JobRecord, stage: str, *, most: int = _MOST_LINES
) -> list[dict[str, Any]]:
    """The first `most` runs of a stage: `{"node", "tried", "name", "series": {name: {"x": steps, "y": values}}}`.

    tried: what the name says of a rate that is one of several, else empty.
    """
    plan = plan_of(job)
    nodes = [node for node in plan.nodes if node.stage.name == stage][:most]
    done = refs_of(jobs, job, plan)
    told: dict[str, dict[str, Line]] = {}
    for one in series_of(jobs, job, points=_POINTS, names=_SHOWN):
        told.setdefault(one.node, {})[one.name] = {"x": list(one.steps), "y": list(one.values)}
    return [
        {
            "node": node.name,
            "tried": _tried(job, node),
            "name": (f"seed {node.seed}" if job.spec.kind == "train" else node.name) + _tried(job, node),
            "series": _series(told.get(node.name, {}), _history(artifacts, done.get(node.name)), peak_rate(node)),
        }
        for node in nodes
    ]


def _series(told: dict[str, Line], history: Mapping[str, Any], peak: float) -> dict[str, Line]:
    points = history.get("points", ())
    kept = {name: _columns(points, name) for name in ("mlm", "task", "rate")}
    share = kept.pop("rate")
    kept["learning_rate"] = {"x": share["x"], "y": [part * peak for part in share["y"]]}
    kept["score"] = _columns(history.get("evaluations", ()), "score")
    return told | {name: line for name, line in kept.items() if line["x"]}


def _columns(points: Any, name: str) -> Line:
    known = [(point["step"], point[name]) for point in points if point.get(name) is not None]
    return {"x": [step for step, _ in known], "y": [value for _, value in known]}


def _history(artifacts: ArtifactStore, ref: ManifestRef | None) -> dict[str, Any]:
    """What a finished stage kept of its course; empty where it is not to be had, for a chart is no result."""
    if ref is None:
        return {}
    try:
        with artifacts.open(ref, "history.json") as handle:
            history: dict[str, Any] = json.load(handle)
    except TLMError:
        return {}
    return history


def rates_of(job: JobRecord, stage: str) -> tuple[float, ...]:
    """The rates of which each is a run of the stage, for each seed. None in studies, whose nodes have whole names."""
    return job.resolved.recipe.finetune.rates if (job.spec.kind, stage) == ("train", "finetune") else ()


def _tried(job: JobRecord, node: Node) -> str:
    return f", {peak_rate(node):g}" if rates_of(job, node.stage.name) else ""
