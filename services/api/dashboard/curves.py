"""Curves of a job for its charts: losses, validation score, tokens per second, learning rate, by step.

While a stage runs its points come from what the workers tell; where a stage was taken from an earlier job, or its
points were dropped since, from the history that its artifact keeps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from services.common.jobstore import JobStore
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import TLMError
from tlm_core.jobs.plan import Node, Plan
from tlm_core.jobs.spec import JobRecord
from tlm_core.training.recipe import Recipe

STAGES = ("joint", "finetune")
_TOLD = ("mlm", "task", "tokens_per_second", "score")
_MOST = 400
_PAGE = 5_000

Line = list[tuple[float, float]]


def stages_of(plan: Plan) -> list[str]:
    """The stages of a plan that have curves, in order."""
    return [stage for stage in STAGES if any(node.stage == stage for node in plan.nodes)]


def peak_rate(recipe: Recipe, stage: str) -> float:
    """AdamW's highest learning rate in a stage; points tell the share of it."""
    return recipe.joint.optimizer.lr if stage == "joint" else recipe.finetune.optimizer.lr


def told_points(jobs: JobStore, job: JobRecord, after: str = "0") -> tuple[list[dict[str, Any]], str]:
    """All points told after a stream id, and the id of the last one."""
    found: list[dict[str, Any]] = []
    while True:
        page = jobs.metrics(job.tenant, job.id, after=after, limit=_PAGE)
        found.extend(page)
        after = page[-1]["id"] if page else after
        if len(page) < _PAGE:
            return found, after


def curves(
    artifacts: ArtifactStore,
    job: JobRecord,
    nodes: Sequence[Node],
    points: Sequence[Mapping[str, Any]],
    done: Mapping[str, ManifestRef],
) -> list[dict[str, Any]]:
    """For each of the `nodes` (of one stage) its name and its lines: `{"name", "series": {name: {"x", "y"}}}`."""
    found = []
    for node in nodes:
        mine = [point for point in points if point.get("node") == node.name]
        history = _history(artifacts, done.get(node.name))
        lines = _lines(mine or history.get("points", ()), peak_rate(job.resolved.recipe, node.stage))
        # A stage that is over has every validation in its history, whatever was told of them.
        scores = [(e["step"], e["score"]) for e in history.get("evaluations", ()) if e.get("score") is not None]
        if scores:
            lines["score"] = scores
        series = {name: _columns(thin(line, _MOST)) for name, line in lines.items() if line}
        found.append({"node": node.name, "name": _name(node), "series": series})
    return found


def thin(line: Line, most: int) -> Line:
    """At most about `most` of the points: first, last, and of each stretch between the lowest and the highest."""
    if len(line) <= most:
        return line
    inner, buckets = line[1:-1], max(1, (most - 2) // 2)
    kept = [line[0]]
    for number in range(buckets):
        stretch = inner[number * len(inner) // buckets : (number + 1) * len(inner) // buckets]
        if stretch:
            ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
            kept.extend(sorted(ends))
    return [*kept, line[-1]]


def _lines(points: Sequence[Mapping[str, Any]], peak: float) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    for point in points:
        values = {name: point.get(name) for name in _TOLD}
        share = point.get("rate")
        values["learning_rate"] = None if share is None else share * peak
        for name, value in values.items():
            if value is None:
                continue
            line = lines.setdefault(name, [])
            # An attempt that goes on from a checkpoint tells some steps again; the later word counts.
            while line and line[-1][0] >= point["step"]:
                line.pop()
            line.append((point["step"], float(value)))
    return lines


def _history(artifacts: ArtifactStore, ref: ManifestRef | None) -> dict[str, Any]:
    """What a finished stage kept of its course; empty where there is none to be had, for a chart is no result."""
    if ref is None:
        return {}
    try:
        with artifacts.open(ref, "history.json") as handle:
            history: dict[str, Any] = json.load(handle)
    except TLMError:
        return {}
    return history


def _columns(line: Line) -> dict[str, list[float]]:
    return {"x": [x for x, _ in line], "y": [y for _, y in line]}


def _name(node: Node) -> str:
    _, _, seed = node.name.partition(".s")
    return f"seed {seed}" if seed else node.name
