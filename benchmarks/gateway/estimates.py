"""Compare the estimated seconds and FLOPs of jobs with the real ones. Estimates use the rates of earlier jobs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from benchmarks.report import figure, remark
from benchmarks.shared import shared_data
from benchmarks.stack import add_dataset, stack_with_sciie
from tlm_client.client import TLMClient
from tlm_core.jobs.spec import JobSpec

JOBS = 10
CORPUS = "scitldr-24.parquet"


def specs() -> Iterator[JobSpec]:
    """Yield jobs that differ in budget, epochs, seeds, dataset, corpus and model size."""
    for number in range(100):
        corpus = "docs" if number % 2 else None
        overrides = {
            "joint.budget.tokens": 100_000 * (1 + number % 4),
            "finetune.epochs": 1 + number % 3,
            "model.layers": 2 if number % 5 == 4 else 3,
            **({} if corpus else {"selection.selector": "none"}),
        }
        seeds = (2 * number, 2 * number + 1) if number % 4 == 3 else (2 * number,)
        dataset = "other" if number % 3 == 2 else "bench"
        yield JobSpec(dataset=dataset, corpus=corpus, seeds=seeds, overrides=overrides)


def compare(client: TLMClient, spec: JobSpec) -> tuple[float, float]:
    """Estimate and run a job. Return its seconds and training FLOPs, each divided by the estimate."""
    estimate = client.estimate(spec)
    assert estimate.seconds is not None and estimate.flops is not None, estimate.reasons
    job = client.wait(client.submit(spec).id)
    assert job.started_at is not None and job.finished_at is not None, job.error
    seconds = (job.finished_at - job.started_at).total_seconds()
    cost = client.report(job.id)["cost"]
    flops = sum(cost[stage]["flops"] for stage in ("joint", "finetune"))
    remark(
        f"{job.id}: {seconds:.1f} s, estimate {estimate.seconds} s; {flops:.3g} FLOPs, estimate {estimate.flops:.3g}"
    )
    return seconds / estimate.seconds, flops / estimate.flops


def main() -> None:
    """Run the jobs. The first two, one without and one with passages, only provide rates for the later estimates."""
    with stack_with_sciie() as client:
        add_dataset(client, "other", "acl_arc")
        client.wait_corpus("docs", client.add_corpus("docs", [shared_data() / "corpus" / CORPUS]).id)
        comparisons = [compare(client, spec) for spec in islice(specs(), JOBS + 2)][2:]
    for unit, shares in zip(("seconds", "flops"), zip(*comparisons, strict=True), strict=True):
        errors = [abs(1 / share - 1) for share in shares]
        figure(f"estimate_{unit}_largest_error", [max(errors)], unit="share", goal=0.25, better="lower")
        figure(f"estimate_{unit}_error", errors, unit="share", better="lower")


if __name__ == "__main__":
    main()
