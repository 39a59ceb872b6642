"""Measure how long a job on a warm Ray cluster needs to its first stage, and to its first training step.

The first job warms up an embedded stack and prepares the data. The script then times jobs with one and two workers, by
their events and their progress.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from benchmarks.report import figure, remark
from benchmarks.stack import stack_with_sciie
from tlm_client.client import TLMClient
from tlm_core.errors import TrainingFailed
from tlm_core.jobs.spec import JobSpec
from tlm_core.jobs.states import TERMINAL

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
    "finetune.max_steps": 200,
    "finetune.evaluations": 1,
}


def start_seconds(client: TLMClient, seed: int, workers: int) -> tuple[float, float]:
    """Run a job. Return the seconds from `workers.submitted` to the workers' first `stage.started` and first step."""
    at: dict[str, datetime] = {}
    job = client.submit(JobSpec(dataset="bench", corpus=None, seeds=(seed,), workers=workers, overrides=SMALL))
    for event in client.events(job.id):
        first = event.type not in at and event.at is not None
        after = event.type != "stage.started" or "workers.submitted" in at  # validate runs in the coordinator
        if first and after and event.at is not None:
            at[event.type] = event.at
            if event.type == "stage.started":
                at["step"] = first_step(client, job.id)
    if "stage.started" not in at:
        raise TrainingFailed(f"{job.id} ended before its workers started. Error: {client.job(job.id).error}")
    stage, step = ((at[name] - at["workers.submitted"]).total_seconds() for name in ("stage.started", "step"))
    return stage, step


def first_step(client: TLMClient, job_id: str) -> datetime:
    """Wait for the first step of finetuning, or for the end of the job. Return the time of this moment."""
    while (job := client.job(job_id)).state not in TERMINAL:
        if job.progress and job.progress.stage == "finetune" and job.progress.step:
            break
        time.sleep(0.05)
    return datetime.now(UTC)


def main() -> None:
    with stack_with_sciie() as client:
        remark(f"the first job on this cluster took {start_seconds(client, 0, 1)[0]:.1f} s to start")
        for suffix, workers in (("", 1), ("_two_workers", 2)):
            runs = [start_seconds(client, 10 * workers + number, workers) for number in range(3)]
            stages, steps = zip(*runs, strict=True)
            figure(f"warm_start{suffix}", stages, goal=10, better="lower", unit="s")
            figure(f"first_step{suffix}", steps, goal=30, better="lower", unit="s")


if __name__ == "__main__":
    main()
