"""Estimates against jobs that then run: ten on a stack of their own, each foretold from those before it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from benchmarks.report import figure, remark
from benchmarks.shared import shared_data
from benchmarks.stack import stack_with_sciie
from tlm_client.client import TLMClient
from tlm_core.jobs.spec import JobSpec

JOBS = 10
CORPUS = "scitldr-24.parquet"


@dataclass(frozen=True)
class Told:
    """What was told of a job before it ran, and what it took: seconds from its claim to its end, FLOPs of training."""

    told_seconds: float
    seconds: float
    told_flops: float
    flops: float


def specs() -> Iterator[JobSpec]:
    """Jobs that differ in budget, epochs, seeds, data set, corpus and size of the model."""
    for number in range(100):
        corpus = "docs" if number % 2 else None
        changes: dict[str, Any] = {
            "joint.budget.tokens": 100_000 * (1 + number % 4), "finetune.epochs": 1 + number % 3,
            "model.layers": 2 if number % 5 == 4 else 3,
        }  # fmt: skip
        if corpus is None:
            changes["selection.selector"] = "none"
        seeds = (2 * number, 2 * number + 1) if number % 4 == 3 else (2 * number,)
        yield JobSpec(dataset="other" if number % 3 == 2 else "bench", corpus=corpus, seeds=seeds, set=changes)


def main() -> None:
    """Run the jobs, the first of which only sets the rates, and print by how much the estimates were off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=JOBS + 1)
    options = parser.parse_args()
    with stack_with_sciie() as client:
        source = shared_data()
        client.add_dataset(
            "other", {split: source / f"tasks/acl_arc/{split}.jsonl" for split in ("train", "validation", "test")}
        )
        load = client.add_corpus("docs", [source / "corpus" / CORPUS])
        client.wait_corpus("docs", load.id)
        found = [_run(client, spec) for spec in islice(specs(), options.jobs)][1:]
    seconds = [abs(one.told_seconds / one.seconds - 1) for one in found]
    flops = [abs(one.told_flops / one.flops - 1) for one in found]
    figure("estimate_seconds_off_most", [max(seconds)], unit="share", goal=0.25, better="lower")
    figure("estimate_seconds_off", seconds, unit="share", better="lower")
    figure("estimate_flops_off_most", [max(flops)], unit="share", goal=0.25, better="lower")
    figure("estimate_flops_off", flops, unit="share", better="lower")


def _run(client: TLMClient, spec: JobSpec) -> Told:
    told = client.estimate(spec)
    assert told.seconds is not None and told.flops is not None, told.reasons
    job = client.wait(client.submit(spec).id)
    assert job.started_at is not None and job.finished_at is not None, job.error
    took = job.finished_at - job.started_at
    cost = client.report(job.id)["cost"]
    spent = sum(cost[stage]["flops"] for stage in ("joint", "finetune"))
    remark(f"{job.id} {job.state}: told {told.seconds} s, took {took:.1f} s; {told.flops:.3g} of {spent:.3g} FLOPs")
    for stage in told.stages:
        remark(f"    {stage.stage}: told {stage.seconds} s ({stage.basis}), took {_took(client, job.id, stage.stage)}")
    return Told(told.seconds, took, told.flops, spent)


def _took(client: TLMClient, job: str, stage: str) -> str:
    """Seconds from one stage's publication to the next, as the events tell."""
    marks = []
    before = None
    for event in client.past_events(job):
        if event.type == "artifact.published" and event.data.get("stage") == stage and before is not None:
            marks.append(f"{event.at - before:.1f} s")
        if event.type in ("job.claimed", "workers.submitted", "stage.started", "artifact.published"):
            before = event.at
    return ", ".join(marks) or "–"


if __name__ == "__main__":
    main()
