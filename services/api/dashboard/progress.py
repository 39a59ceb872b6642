"""Progress of a job as the stage strip and the lists show it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from services.api.dashboard.present import words
from tlm_core.artifacts import ManifestRef
from tlm_core.jobs.plan import Node, Plan, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import ACTIVE, State

_STOPPED = {State.FAILED: "failed", State.CANCELLED: "cancelled", State.PAUSED: "paused"}


@dataclass(frozen=True)
class Step:
    """One stage of a job. state: done, reused, running, waiting, failed, cancelled or paused.

    If a stage is reused, other jobs wrote all its artifacts.
    done, nodes: the numbers of finished nodes and of all nodes. share: the finished part of the stage, from 0 to 1.
    """

    stage: str
    state: str
    done: int
    nodes: int
    share: float


def steps_of(job: JobRecord, plan: Plan, done: Mapping[str, ManifestRef]) -> list[Step]:
    """Return the stages of a job in plan order. done: node → artifact, whose folder names the job that wrote it."""
    current = _current(job, plan, done)
    steps = []
    for stage in dict.fromkeys(node.stage.name for node in plan.nodes):
        names = [node.name for node in plan.nodes if node.stage.name == stage]
        finished = sum(name in done for name in names)
        # Studies skip impossible nodes, so a succeeded job may have unfinished nodes.
        if finished == len(names) or job.state is State.SUCCEEDED:
            own = not finished or any(f"/{job.id}-" in done[name].folder for name in names if name in done)
            steps.append(Step(stage, "done" if own else "reused", finished, len(names), 1.0))
            continue
        state = "waiting"
        if stage == current and job.state is not State.QUEUED:
            state = _STOPPED.get(job.state, "running")
        progress = job.progress if job.progress and job.progress.stage == stage else None
        within = min(1.0, progress.step / progress.total) if progress and progress.total else 0.0
        steps.append(Step(stage, state, finished, len(names), min(1.0, (finished + within) / len(names))))
    return steps


def node_titles(plan: Plan) -> dict[str, str]:
    """Map the name of each node to a title: its stage with seed and rate, such as `joint (seed 0)`.

    Nodes that would share a title have their names as titles.
    """
    titles = {node.name: _stage_with_values(node) for node in plan.nodes}
    counts = Counter(titles.values())
    return {name: title if counts[title] == 1 else name for name, title in titles.items()}


def runtime(job: JobRecord) -> float | None:
    """Return the seconds that the job has run over all attempts, without waits and pauses; None before its start."""
    if not job.started_at:
        return None
    return job.ran_seconds + (time.time() - job.running_since if job.running_since else 0.0)


def selects(job: JobRecord) -> bool:
    """Return whether the job has a select stage."""
    return any(node.stage.name == "select" for node in plan_of(job).nodes)


def _current(job: JobRecord, plan: Plan, done: Collection[str]) -> str | None:
    """Return the current stage, or the stage at which the job stopped."""
    remaining = [node for node in plan.nodes if node.name not in done]
    if not remaining:
        return None
    reported = job.progress.stage if job.progress else None
    if job.state in ACTIVE and any(node.stage.name == reported for node in remaining):
        return reported
    return remaining[0].stage.name


def _stage_with_values(node: Node) -> str:
    values = [f"{word} {value:g}" for word, value in (("seed", node.seed), ("rate", node.rate)) if value is not None]
    return words(node.stage.name) + (f" ({', '.join(values)})" if values else "")
