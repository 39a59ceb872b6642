"""The program that Ray runs for an attempt: `python -m services.trainer.program`, and what an Assignment says.

A single worker computes in this very process, which Ray has started where there is room for it. Several are started
as Ray actors, and waited for: each second that this takes is one before they begin, so what only a worker needs is
imported where it computes. Retries are not Ray's: a lost worker ends the attempt, and the coordinator starts the next
one, which goes on from the last checkpoint.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Mapping

from services.trainer.assignment import Assignment
from services.trainer.meeting import Door, JoiningTorch, Share, join
from tlm_core.stages import STAGES, Stage


def main() -> None:
    """Read the assignment and see it through. Exits non-zero when a worker failed."""
    assignment = Assignment.read()
    # Ray asks a program to end before it kills it. An exit, unlike the signal's own effect, leaves no files behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if assignment.workers > 1:
        _start(assignment)
    else:
        _compute(assignment, 0, lambda value: value, STAGES)


def _compute(assignment: Assignment, rank: int, share: Share, stages: Mapping[str, Stage]) -> None:
    """The work of one worker. share: as of GroupRunner."""
    # Before numpy and torch are there, which look for it when they are loaded.
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(assignment.cpus)))
    from services.common.logs import facts, set_up_logging
    from services.trainer.settings import TrainerSettings
    from services.trainer.worker import GroupRunner

    set_up_logging("worker")
    settings = TrainerSettings()
    runner = GroupRunner(
        settings.job_store(),
        settings.artifact_store(),
        settings.scratch,
        stages,
        rank=rank,
        world_size=assignment.workers,
        share=share,
    )
    with facts(job_id=assignment.job, attempt=assignment.attempt, rank=rank):
        runner.run(assignment)


def _start(assignment: Assignment) -> None:
    """Start the workers, together or not at all, and wait for them. Raises what the first to fail raised."""
    # Plain actors, not Ray Train: its controller and its trainer import torch and pandas before the first worker does.
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init()
    cpus, gpus = assignment.cpus, assignment.gpus
    room = placement_group([{"CPU": cpus} | ({"GPU": gpus} if gpus else {})] * assignment.workers, strategy="PACK")
    members, secret = [], secrets.token_bytes(32)
    for rank in range(assignment.workers):
        place = PlacementGroupSchedulingStrategy(room, placement_group_bundle_index=rank)
        member = ray.remote(_Member).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=place)
        members.append(member.remote(assignment, rank, secret))
    meeting = members[0].meeting_point.remote()
    running = [member.run.remote(meeting) for member in members]
    while running:
        done, running = ray.wait(running)
        ray.get(done)


class _Member:
    """One of several workers, in a process of its own; the others die with the program."""

    def __init__(self, assignment: Assignment, rank: int, secret: bytes) -> None:
        import ray

        self._assignment, self._rank, self._secret = assignment, rank, secret
        self._door = None if rank else Door(ray.util.get_node_ip_address(), secret, assignment.workers - 1)

    def meeting_point(self) -> tuple[str, int]:
        """Where the workers find one another: an address of this one, the first."""
        assert self._door is not None
        return self._door.address

    def run(self, meeting_point: tuple[str, int]) -> None:
        """This worker's part of the assignment."""
        share = join(meeting_point, self._secret) if self._door is None else self._door.open()
        stages = JoiningTorch(STAGES, share, meeting_point[0], self._rank, self._assignment.workers)
        _compute(self._assignment, self._rank, share, stages)
        stages.part()


if __name__ == "__main__":
    main()
