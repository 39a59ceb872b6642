"""How far a job is, as the stage strip and the lists show it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tlm_core.jobs.plan import Plan, plan_of
from tlm_core.jobs.spec import JobRecord, Progress
from tlm_core.jobs.states import ACTIVE, State

_STOPPED = {State.FAILED: "failed", State.CANCELLED: "cancelled", State.PAUSED: "paused"}


@dataclass(frozen=True)
class Step:
    """One stage of a job. state: done, running, waiting, failed, cancelled or paused; nodes: how many runs it has.

    share: of the whole stage, 0 to 1.
    """

    stage: str
    state: str
    done: int
    nodes: int
    share: float


def steps_of(job: JobRecord, plan: Plan, done: Collection[str]) -> list[Step]:
    """The stages of a job in the order of its plan, with the one it is at."""
    stages = list(dict.fromkeys(node.stage.name for node in plan.nodes))
    current = _current(job, plan, done)
    steps = []
    for stage in stages:
        names = [node.name for node in plan.nodes if node.stage.name == stage]
        finished = sum(name in done for name in names)
        # A study leaves out what cannot be had; a job that succeeded waits for nothing.
        if finished == len(names) or job.state is State.SUCCEEDED:
            steps.append(Step(stage, "done", finished, len(names), 1.0))
            continue
        state = "waiting"
        if stage == current and job.state is not State.QUEUED:
            state = _STOPPED.get(job.state, "running")
        within = share_of(job.progress) if job.progress and job.progress.stage == stage else 0.0
        steps.append(Step(stage, state, finished, len(names), min(1.0, (finished + within) / len(names))))
    return steps


def selects(job: JobRecord) -> bool:
    """Whether passages are retrieved for the job."""
    return any(node.stage.name == "select" for node in plan_of(job).nodes)


def share_of(progress: Progress | None) -> float:
    """The part of the current node that is done, 0 to 1."""
    return min(1.0, progress.step / progress.total) if progress and progress.total else 0.0


def overall(job: JobRecord) -> float | None:
    """The part of a job's nodes that are done, 0 to 1; None where nobody has told yet."""
    if job.state is State.SUCCEEDED:
        return 1.0
    progress = job.progress
    if progress is None or not progress.nodes_total:
        return None
    return min(1.0, (progress.nodes_done + share_of(progress)) / progress.nodes_total)


def _current(job: JobRecord, plan: Plan, done: Collection[str]) -> str | None:
    """The stage a job is at, or was at when it stopped."""
    left = [node for node in plan.nodes if node.name not in done]
    if not left:
        return None
    told = job.progress.stage if job.progress else None
    if job.state in ACTIVE and any(node.stage.name == told for node in left):
        return told
    return left[0].stage.name
