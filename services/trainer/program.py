"""The program that Ray runs for an attempt: `python -m services.trainer.program --job … --attempt … --group …`

It starts the job's workers with Ray Train and waits for them. Retries are not Ray's: a lost worker ends the attempt,
and the coordinator starts the next one, which goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import Any

from services.common.logs import facts, set_up_logging
from services.trainer.settings import TrainerSettings
from services.trainer.worker import Assignment, GroupRunner


def run_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import torch
    import torch.distributed as dist

    from tlm_core.stages import STAGES

    set_up_logging("worker")
    settings = TrainerSettings()
    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(settings.cpus_per_worker(context.get_world_size()))))

    def share(value: Any) -> Any:
        if context.get_world_size() == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    runner = GroupRunner(
        settings.job_store(),
        settings.artifact_store(),
        settings.scratch,
        STAGES,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        share=share,
    )
    assignment = Assignment(**config)
    with facts(job_id=assignment.job, attempt=assignment.attempt, rank=context.get_world_rank()):
        runner.run(assignment)


def main() -> None:
    """Read the assignment, start the workers, wait. Exits non-zero when a worker failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tenant", "job", "group"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    assignment = Assignment(**vars(parser.parse_args()))

    # Read when Ray Train is imported. A lost node ends the attempt anyway, our own reports tell how training goes,
    # and each of the two would start one more process before the first step.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    settings = TrainerSettings()
    job = settings.job_store().get(assignment.tenant, assignment.job)
    resources = {"CPU": settings.cpus_per_worker(job.spec.workers)} | (
        {"GPU": settings.worker_gpus} if settings.worker_gpus else {}
    )
    TorchTrainer(
        run_worker,
        train_loop_config=asdict(assignment),
        scaling_config=ScalingConfig(
            num_workers=job.spec.workers, use_gpu=settings.worker_gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"{assignment.job}.{assignment.group}.{assignment.attempt}",
            storage_path=f"{settings.storage.rstrip('/')}/ray",
            failure_config=FailureConfig(max_failures=0),
        ),
    ).fit()


if __name__ == "__main__":
    main()
