"""The program that Ray runs for an attempt: `python -m services.trainer.program --job … --attempt … --group …`

A single worker computes in this very process, which Ray has started where there is room for it. Several are started
with Ray Train, and waited for. Retries are not Ray's: a lost worker ends the attempt, and the coordinator starts the
next one, which goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from services.common.logs import facts, set_up_logging
from services.trainer.settings import TrainerSettings
from services.trainer.worker import Assignment, GroupRunner


def main() -> None:
    """Read the assignment and see it through. Exits non-zero when a worker failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tenant", "job", "group"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    assignment = Assignment(**vars(parser.parse_args()))
    settings = TrainerSettings()
    workers = settings.job_store().get(assignment.tenant, assignment.job).spec.workers
    # Ray Train would start a controller and a worker for this, which import everything again, one after the other.
    _compute(assignment) if workers == 1 else _start(assignment, settings, workers)


def _compute(
    assignment: Assignment, rank: int = 0, world_size: int = 1, share: Callable[[Any], Any] = lambda value: value
) -> None:
    """The work of one worker. share: as of GroupRunner."""
    import torch

    from tlm_core.stages import STAGES

    set_up_logging("worker")
    settings = TrainerSettings()
    torch.set_num_threads(max(1, int(settings.cpus_per_worker(world_size))))
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


def _start(assignment: Assignment, settings: TrainerSettings, workers: int) -> None:
    """Start that many workers and wait for them."""
    # Read when Ray Train is imported. A lost node ends the attempt anyway, our own reports tell how training goes,
    # and each of the two would start one more process before the first step.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": settings.cpus_per_worker(workers)} | (
        {"GPU": settings.worker_gpus} if settings.worker_gpus else {}
    )
    TorchTrainer(
        run_worker,
        train_loop_config=asdict(assignment),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=settings.worker_gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"{assignment.job}.{assignment.group}.{assignment.attempt}",
            storage_path=f"{settings.storage.rstrip('/')}/ray",
            failure_config=FailureConfig(max_failures=0),
        ),
    ).fit()


def run_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import torch.distributed as dist

    def share(value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    context = ray.train.get_context()
    _compute(Assignment(**config), context.get_world_rank(), context.get_world_size(), share)


if __name__ == "__main__":
    main()
