"""The progress of a whole job: its nodes, weighted by their expected seconds."""

from __future__ import annotations

from services.common.situation import Situation
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import Progress
from tlm_core.training.params import TrainParams
from tlm_core.training.stage import Place

# Before this share of a node is done, its measured time left is too noisy: the first step includes the start-up.
_MEASURED = 0.05
_MOST_BY_TIME = 0.95  # limit of a share that is estimated from elapsed time


def progress_of(
    situation: Situation,
    node: Node,
    *,
    step: int = 0,
    total: int = 0,
    rate: float | None = None,
    unit: str = "steps",
    eta_seconds: float | None = None,
    elapsed: float = 0.0,
) -> Progress:
    """Return the progress of a job while `node` runs.

    step, total: number of done steps and of all steps of the node. rate: `unit` per second. eta_seconds: measured time
    until the node ends. elapsed: seconds since the start of the node. If `total` is 0, they determine its progress.
    """
    nodes = situation.plan.nodes
    done = situation.done.keys() - {node.name}
    # The nodes of other seeds that run now have about the progress of `node`. The other seeds wait for CPUs or a GPU.
    twins = [twin for twin in situation.plan.twins(node) if twin == node or _works(situation, twin.group)]
    side_by_side = len(twins)
    running = {twin.name for twin in twins} - done
    done |= {before.name for twin in twins if twin.name in running for before in situation.plan.behind(twin.name)}
    within = min(1.0, step / total) if total else 0.0
    share, left = (len(done) + within * len(running)) / len(nodes), None
    slowdown = _slowdown(situation, node, within, eta_seconds and eta_seconds / side_by_side)
    if any((seconds := _expected(situation, slowdown)).values()):
        if not total and seconds[node.name] and not isinstance(node.params, TrainParams):
            within = min(_MOST_BY_TIME, elapsed / side_by_side / seconds[node.name])
        measured = eta_seconds if within >= _MEASURED else None
        if measured is not None and within < 1 and not isinstance(node.params, TrainParams):
            seconds[node.name] = measured / (1 - within)
        on_workers = (other for other in nodes if other.place is Place.WORKERS)
        started = {situation.plan.start_of(other) for other in on_workers if other.name in done | running}
        passed = sum(seconds[name] for name in done | started) + within * sum(seconds[name] for name in running)
        left = (1 - within) * seconds[node.name] if measured is None else measured / side_by_side
        later = (value for name, value in seconds.items() if name not in done | started | running)
        left = left * len(running) + sum(later)
        left = max(left, measured or 0.0)
        share = passed / (passed + left) if passed + left else share
    return Progress(
        stage=node.stage.name, node=node.name, step=step, total=total, rate=rate, unit=unit,
        stage_eta_seconds=eta_seconds, share=share, eta_seconds=left, nodes_done=len(done), nodes_total=len(nodes),
        slowdown=slowdown,
    )  # fmt: skip


def _works(situation: Situation, group: str) -> bool:
    """Return whether a group runs: its workers have started, and a node of the group is not done."""
    return situation.job.works(group) and not situation.is_done(group)


def _slowdown(situation: Situation, node: Node, within: float, left: float | None) -> float:
    """Return measured ÷ expected seconds of training. Without a measurement, return the job's last ratio, or else 1.

    within: the share of `node` that is done. left: measured seconds that `node` still adds to the job, or None.
    """
    own = situation.job.resolved.node_seconds.get(node.name, 0.0)
    if left is not None and _MEASURED <= within < 1 and own and isinstance(node.params, TrainParams):
        return left / (1 - within) / own
    return situation.job.progress.slowdown if situation.job.progress else 1.0


def _expected(situation: Situation, slowdown: float) -> dict[str, float]:
    """Return the expected seconds of each node and of each start of workers, by name. slowdown: factor for training."""
    seconds, plan = situation.job.resolved.node_seconds, situation.plan
    expected = {start: seconds.get(start, 0.0) for start in map(plan.start_of, plan.nodes)}
    for node in plan.nodes:
        slower = slowdown if isinstance(node.params, TrainParams) else 1.0
        expected[node.name] = slower * seconds.get(node.name, 0.0)
    return expected
