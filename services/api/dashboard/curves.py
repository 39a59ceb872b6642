"""Curves of a job for its charts: losses, validation score, tokens per second, learning rate, by step.

The points of a running stage come from the reports of its workers. The artifact of a finished stage has the complete
history, also that of earlier jobs and attempts. Only the speed is not in this history.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypedDict

from services.api.job_artifacts import situation_of
from services.api.series import series_of
from services.common.jobstore import JobStore
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import TLMError
from tlm_core.jobs.plan import Node, Plan, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.training.params import TrainParams
from tlm_core.wire import JsonObject

STAGES = ("joint", "finetune")
_SHOWN = ("mlm", "task", "tokens_per_second", "score", "validation_loss", "learning_rate")
_POINTS = 400
# Studies have a node per size and seed. A chart with more lines is unreadable.
_MAX_LINES = 12

Line = dict[str, list[float]]


class Curve(TypedDict):
    """The lines of one node. name: the label of the curve. series: metric → steps (`x`) and values (`y`).

    tried: the learning rate as a suffix of the label, or "" if the stage tries only one rate.
    """

    node: str
    tried: str
    name: str
    series: dict[str, Line]


def stages_of(plan: Plan) -> list[str]:
    """Return the stages of a plan that have curves, in plan order."""
    return [stage for stage in STAGES if any(node.stage.name == stage for node in plan.nodes)]


def curves(
    jobs: JobStore, artifacts: ArtifactStore, job: JobRecord, stage: str, *, most: int = _MAX_LINES
) -> list[Curve]:
    """Return the curves of a stage: one for each of its first `most` nodes."""
    situation = situation_of(jobs, job)
    nodes = [node for node in situation.plan.nodes if node.stage.name == stage]
    # In studies, several nodes of a stage have the same seed and rate.
    by_seed = len({(node.seed, node.rate) for node in nodes}) == len(nodes)
    reported: dict[str, dict[str, Line]] = {}
    for line in series_of(jobs, job, points=_POINTS, names=_SHOWN):
        reported.setdefault(line.node, {})[line.name] = {"x": list(line.steps), "y": list(line.values)}
    result: list[Curve] = []
    for node in nodes[:most]:
        tried = "" if node.rate is None else f", {node.rate:g}"
        name = f"seed {node.seed}{tried}" if by_seed else node.name
        lines = reported.get(node.name, {})
        if ref := situation.done.get(node.name):
            with suppress(TLMError):  # Charts are optional.
                lines |= _stored_lines(node, artifacts.read_json(ref, "history.json"))
        result.append({"node": node.name, "tried": tried, "name": name, "series": lines})
    return result


def _stored_lines(node: Node, history: JsonObject) -> dict[str, Line]:
    """Return metric → line from the training history of a finished node. Metrics without values are omitted."""
    assert isinstance(node.params, TrainParams)
    peak = node.params.optimizer.lr  # The history has learning rates as fractions of the peak.
    result: dict[str, Line] = {}
    for name, part, key, unit in (
        ("mlm", "points", "mlm", 1.0),
        ("task", "points", "task", 1.0),
        ("learning_rate", "points", "rate", peak),
        ("score", "evaluations", "score", 1.0),
        ("validation_loss", "evaluations", "loss", 1.0),
    ):
        if known := [point for point in history.get(part, ()) if point.get(key) is not None]:
            result[name] = {"x": [point["step"] for point in known], "y": [point[key] * unit for point in known]}
    return result


def rates_of(job: JobRecord, stage: str) -> tuple[float, ...]:
    """Return the learning rates that each seed tries in the stage, or () if each seed tries one rate."""
    return tuple(dict.fromkeys(n.rate for n in plan_of(job).nodes if n.stage.name == stage and n.rate is not None))
