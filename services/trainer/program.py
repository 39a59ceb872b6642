"""The program that Ray runs for an attempt: `python -m services.trainer.program --job … --attempt … --group …`

A single worker computes in this very process, which Ray has started where there is room for it. Several are started
as Ray actors, and waited for. Retries are not Ray's: a lost worker ends the attempt, and the coordinator starts the
next one, which goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from services.common.logs import facts, set_up_logging
from services.trainer.settings import TrainerSettings
from services.trainer.worker import Assignment, GroupRunner
from tlm_core.stages import STAGES

# No stage takes so long. One that a single worker computes may well outlast what torch has the others wait for it, 10
# minutes over NCCL; should that worker die, its connections break or Ray ends the program.
PATIENCE = timedelta(days=30)


def main() -> None:
    """Read the assignment and see it through. Exits non-zero when a worker failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tenant", "job", "group"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    assignment = Assignment(**vars(parser.parse_args()))
    # Ray asks a program to end before it kills it. An exit, unlike the signal's own effect, leaves no files behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = TrainerSettings()
    workers = settings.job_store().get(assignment.tenant, assignment.job).spec.workers
    _compute(assignment) if workers == 1 else _start(assignment, settings, workers)


def _compute(
    assignment: Assignment, rank: int = 0, world_size: int = 1, share: Callable[[Any], Any] = lambda value: value
) -> None:
    """The work of one worker. share: as of GroupRunner."""
    set_up_logging("worker")
    settings = TrainerSettings()
    _use_threads(max(1, int(settings.cpus_per_worker(world_size))))
    runner = GroupRunner(
        settings.job_store(),
        settings.artifact_store(),
        settings.scratch,
        STAGES,
        rank=rank,
        world_size=world_size,
        share=share,
    )
    with facts(job_id=assignment.job, attempt=assignment.attempt, rank=rank):
        runner.run(assignment)


def _use_threads(count: int) -> None:
    """Have torch compute with that many, if it is there; if it is not, once it is: not every stage wants it."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def _start(assignment: Assignment, settings: TrainerSettings, workers: int) -> None:
    """Start that many workers, together or not at all, and wait for them. Raises what the first to fail raised."""
    # Plain actors, not Ray Train: its controller and its trainer import torch and pandas before the first worker does.
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init()
    cpus, gpus = settings.cpus_per_worker(workers), settings.worker_gpus
    room = placement_group([{"CPU": cpus} | ({"GPU": gpus} if gpus else {})] * workers, strategy="PACK")
    members = []
    for rank in range(workers):
        place = PlacementGroupSchedulingStrategy(room, placement_group_bundle_index=rank)
        member = ray.remote(_Member).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=place)
        members.append(member.remote(assignment, rank, workers))
    meeting = members[0].meeting_point.remote()
    running = [member.run.remote(meeting) for member in members]
    while running:
        done, running = ray.wait(running)
        ray.get(done)


class _Member:
    """One of several workers, in a process of its own; the others die with the program."""

    def __init__(self, assignment: Assignment, rank: int, world_size: int) -> None:
        self._assignment, self._rank, self._world_size = assignment, rank, world_size

    def meeting_point(self) -> str:
        """Where the workers find one another: an address of this one."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def run(self, meeting_point: str) -> None:
        """This worker's part of the assignment."""
        import torch
        import torch.distributed as dist

        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, meeting_point, rank=self._rank, world_size=self._world_size)
        _compute(self._assignment, self._rank, self._world_size, patient_share())
        dist.destroy_process_group()


def patient_share() -> Callable[[Any], Any]:
    """GroupRunner's `share` among all workers, which waits PATIENCE. Every worker calls this at the same time."""
    import torch.distributed as dist

    # A group of its own: in a step of training the others are waited for as long as torch thinks right.
    group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def share(value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=group)
        return box[0]

    return share


if __name__ == "__main__":
    main()
