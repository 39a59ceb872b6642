"""Estimates against jobs that then run: ten small ones on a stack of their own, each foretold from those before it."""

from __future__ import annotations

import argparse

from benchmarks.report import figure, remark
from benchmarks.stack import stack_with_sciie
from tlm_core.jobs.spec import JobSpec


def main() -> None:
    """Ten jobs of different budgets and lengths on SciERC alone; the first only sets the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=11)
    options = parser.parse_args()
    off: list[float] = []
    flops: list[float] = []
    with stack_with_sciie() as client:
        for number in range(options.jobs):
            spec = JobSpec(
                dataset="bench", corpus=None, seeds=(number,),
                set={"selection.selector": "none", "joint.budget.tokens": 100_000 * (1 + number % 4),
                     "finetune.epochs": 1 + number % 3},
            )  # fmt: skip
            told = client.estimate(spec)
            job = client.wait(client.submit(spec).id)
            took = (job.finished_at or 0) - (job.started_at or 0)
            cost = client.report(job.id)["cost"]
            spent = sum(cost[stage]["flops"] for stage in ("joint", "finetune"))
            remark(f"{job.id} {job.state}: told {told.seconds} s, took {took:.1f} s; {told.flops} of {spent} FLOPs")
            if number and told.seconds is not None and told.flops is not None:
                off.append(abs(told.seconds / took - 1))
                flops.append(abs(told.flops / spent - 1))
    figure("estimate_seconds_off_most", [max(off)], unit="share", goal=0.25, better="lower")
    figure("estimate_seconds_off", off, unit="share", better="lower")
    figure("estimate_flops_off", flops, unit="share", goal=0.25, better="lower")


if __name__ == "__main__":
    main()
