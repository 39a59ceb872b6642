"""Progress of a job for the pages: the state of its stages, and its running time."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from services.api.dashboard.present import words
from services.common.situation import Situation
from tlm_core.jobs.plan import Node, Plan, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import ACTIVE, State

_STOPPED = {State.FAILED: "failed", State.CANCELLED: "cancelled", State.PAUSED: "paused"}


@dataclass(frozen=True)
class Step:
    """One stage of a job. state: done, reused, running, waiting, failed, cancelled or paused.

    Other jobs wrote all artifacts of a reused stage. done, nodes: the numbers of finished nodes and of all nodes.
    share: the finished part of the stage, from 0 to 1.
    """

    stage: str
    state: str
    done: int
    nodes: int
    share: float


def steps_of(situation: Situation) -> list[Step]:
    """Return the stages of a job in plan order."""
    job, plan, done = situation.job, situation.plan, situation.done
    current = _current(situation)
    steps = []
    for stage in dict.fromkeys(node.stage.name for node in plan.nodes):
        names = [node.name for node in plan.nodes if node.stage.name == stage]
        finished = sum(name in done for name in names)
        # Studies skip impossible nodes, so a succeeded job may have unfinished nodes.
        if finished == len(names) or job.state is State.SUCCEEDED:
            # The folder of an artifact names the job that wrote the artifact.
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
    """Return node name → title. A title is the stage with seed and learning rate, such as `joint (seed 0)`.

    If several nodes would have the same title, each of them has its name as title.
    """

    def title(node: Node) -> str:
        values = {"seed": node.seed, "rate": node.rate}
        known = ", ".join(f"{word} {value:g}" for word, value in values.items() if value is not None)
        return words(node.stage.name) + (f" ({known})" if known else "")

    titles = {node.name: title(node) for node in plan.nodes}
    counts = Counter(titles.values())
    return {name: title if counts[title] == 1 else name for name, title in titles.items()}


def runtime(job: JobRecord) -> float | None:
    """Return the running time over all attempts in seconds, without waits and pauses, or None before the start."""
    if not job.started_at:
        return None
    return job.ran_seconds + (time.time() - job.running_since if job.running_since else 0.0)


def selects(job: JobRecord) -> bool:
    """Return whether the job has a select stage."""
    return any(node.stage.name == "select" for node in plan_of(job).nodes)


def _current(situation: Situation) -> str | None:
    """Return the current stage, or the stage at which the job stopped, or None if all nodes are done."""
    job = situation.job
    remaining = [node for node in situation.plan.nodes if node.name not in situation.done]
    if not remaining:
        return None
    reported = job.progress.stage if job.progress else None
    if job.state in ACTIVE and any(node.stage.name == reported for node in remaining):
        return reported
    return remaining[0].stage.name
