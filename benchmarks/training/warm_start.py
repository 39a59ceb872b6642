"""Measure the time from a submission to a warm Ray cluster until the first stage of its workers.

The first job warms up an embedded stack. The times of the next jobs, with one and two workers, come from their events.
"""

from __future__ import annotations

from datetime import datetime

from benchmarks.report import figure, remark
from benchmarks.stack import stack_with_sciie
from tlm_client.client import TLMClient
from tlm_core.errors import TrainingFailed
from tlm_core.jobs.spec import JobSpec

# The start is measured, so training is minimal.
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
    """Run a job and return the seconds from `workers.submitted` to the workers' first `stage.started`."""
    at: dict[str, datetime] = {}
    job = client.submit(JobSpec(dataset="bench", corpus=None, seeds=(seed,), workers=workers, overrides=SMALL))
    for event in client.events(job.id):
        first = event.type not in at and event.at is not None
        after = event.type != "stage.started" or "workers.submitted" in at  # validate runs in the coordinator
        if first and after and event.at is not None:
            at[event.type] = event.at
    if "stage.started" not in at:
        raise TrainingFailed(f"The job did not start: {client.job(job.id).error}.")
    return (at["stage.started"] - at["workers.submitted"]).total_seconds()


def main() -> None:
    with stack_with_sciie() as client:
        remark(f"the first job on this cluster took {start_seconds(client, 0, 1):.1f} s to start")
        for name, workers in (("warm_start", 1), ("warm_start_two_workers", 2)):
            runs = [start_seconds(client, 10 * workers + number, workers) for number in range(3)]
            figure(name, runs, goal=10, better="lower", unit="s")


if __name__ == "__main__":
    main()
