"""Curves of a job for its charts: losses, validation score, tokens per second, learning rate, by step.

The points of a running stage come from the reports of its workers. The store thins the points of long runs. The
artifact of a finished stage has the complete history, including earlier jobs and attempts, but not the speed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypedDict

from services.api.job_artifacts import artifacts_by_node
from services.api.series import series_of
from services.common.jobstore import JobStore
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import TLMError
from tlm_core.jobs.plan import Node, Plan, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.training.params import TrainParams

STAGES = ("joint", "finetune")
_SHOWN = ("mlm", "task", "tokens_per_second", "score", "validation_loss", "learning_rate")
_POINTS = 400
# Studies have a node per size and seed; more lines than this are unreadable.
_MAX_LINES = 12

Line = dict[str, list[float]]
Points = Sequence[Mapping[str, float | None]]


class _History(TypedDict, total=False):
    """The part of a training history that charts show."""

    points: Points
    evaluations: Points


class Curve(TypedDict):
    """The lines of one node. name: the label of the curve. series: metric → steps (`x`) and values (`y`).

    tried: the suffix of the label with the learning rate, or "" if the stage tries only one.
    """

    node: str
    tried: str
    name: str
    series: dict[str, Line]


def stages_of(plan: Plan) -> list[str]:
    """Return the stages of a plan that have curves, in plan order."""
    return [stage for stage in STAGES if any(node.stage.name == stage for node in plan.nodes)]


def peak_rate(node: Node) -> float:
    """Return the peak AdamW learning rate of a training node. Its history stores rates as fractions of this peak."""
    assert isinstance(node.params, TrainParams)
    return node.params.optimizer.lr


def curves(
    jobs: JobStore, artifacts: ArtifactStore, job: JobRecord, stage: str, *, most: int = _MAX_LINES
) -> list[Curve]:
    """Return the curves of a stage: one for each of its first `most` nodes."""
    plan = plan_of(job)
    nodes = [node for node in plan.nodes if node.stage.name == stage]
    # In studies, several nodes of a stage have the same seed and rate.
    by_seed = len({(node.seed, node.rate) for node in nodes}) == len(nodes)
    done = artifacts_by_node(jobs, job, plan)
    reported: dict[str, dict[str, Line]] = {}
    for line in series_of(jobs, job, points=_POINTS, names=_SHOWN):
        reported.setdefault(line.node, {})[line.name] = {"x": list(line.steps), "y": list(line.values)}
    return [
        {
            "node": node.name,
            "tried": _rate(node),
            "name": f"seed {node.seed}{_rate(node)}" if by_seed else node.name,
            "series": _series(reported.get(node.name, {}), _history(artifacts, done.get(node.name)), peak_rate(node)),
        }
        for node in nodes[:most]
    ]


def _series(reported: dict[str, Line], history: _History, peak: float) -> dict[str, Line]:
    points = history.get("points", ())
    lines = {name: _columns(points, name) for name in ("mlm", "task", "rate")}
    share = lines.pop("rate")
    lines["learning_rate"] = {"x": share["x"], "y": [part * peak for part in share["y"]]}
    evaluations = history.get("evaluations", ())
    lines |= {"score": _columns(evaluations, "score"), "validation_loss": _columns(evaluations, "loss")}
    return reported | {name: line for name, line in lines.items() if line["x"]}


def _columns(points: Points, name: str) -> Line:
    pairs = [(point["step"], point.get(name)) for point in points]
    known = [(step, value) for step, value in pairs if step is not None and value is not None]
    return {"x": [step for step, _ in known], "y": [value for _, value in known]}


def _history(artifacts: ArtifactStore, ref: ManifestRef | None) -> _History:
    """Return the training history of a finished stage, or {} if it is unreadable, because charts are optional."""
    if ref is None:
        return {}
    try:
        with artifacts.open(ref, "history.json") as handle:
            history: _History = json.load(handle)
    except TLMError:
        return {}
    return history


def rates_of(job: JobRecord, stage: str) -> tuple[float, ...]:
    """Return the learning rates that each seed tries in the stage, or () if it tries only one."""
    return tuple(dict.fromkeys(n.rate for n in plan_of(job).nodes if n.stage.name == stage and n.rate is not None))


def _rate(node: Node) -> str:
    return "" if node.rate is None else f", {node.rate:g}"
