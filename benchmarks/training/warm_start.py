"""From the trainer's submission to a warm Ray cluster until the workers are in their first stage.

It starts the whole embedded stack, lets one job warm it up, and takes the times of the next ones from their event logs:
with a single worker, which computes in the program that Ray starts, and with two, which that program starts.
"""

from __future__ import annotations

import argparse

from benchmarks.report import figure, remark
from benchmarks.stack import stack_with_sciie
from tlm_client.client import TLMClient
from tlm_core.errors import TrainingFailed
from tlm_core.jobs.spec import JobSpec

# As little training as there can be: the start is what is measured.
SMALL = {
    "joint.enabled": False,
    "selection.selector": "none",
    "model.init": "scratch",
    "model.layers": 1,
    "model.hidden": 32,
    "model.heads": 2,
    "model.intermediate": 32,
    "tokenizer.vocab_size": 1_000,
    "finetune.max_steps": 2,
    "finetune.evaluations": 1,
}


def start_seconds(client: TLMClient, seed: int, workers: int) -> float:
    """Submit a job, wait for its end; seconds from `workers.submitted` to the workers' first `stage.started`."""
    at: dict[str, float] = {}
    job = client.submit(JobSpec(dataset="bench", corpus=None, seeds=(seed,), workers=workers, set=SMALL))
    for event in client.events(job.id):
        first = event.type not in at and event.at is not None
        after = event.type != "stage.started" or "workers.submitted" in at  # validate runs in the coordinator
        if first and after and event.at is not None:
            at[event.type] = event.at
    if "stage.started" not in at:
        raise TrainingFailed(f"the job never began: {client.job(job.id).error}")
    return at["stage.started"] - at["workers.submitted"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with stack_with_sciie() as client:
        remark(f"the first job on this cluster took {start_seconds(client, 0, 1):.1f} s to start")
        for name, workers in (("warm_start", 1), ("warm_start_two_workers", 2)):
            runs = [start_seconds(client, 10 * workers + number, workers) for number in range(options.repeats)]
            figure(name, runs, goal=10, better="lower", unit="s")


if __name__ == "__main__":
    main()
