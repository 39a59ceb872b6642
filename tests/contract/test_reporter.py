"""What a worker tells of its attempt, on a real Redis that takes nothing for a while, and what cannot be told."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from services.common.jobstore import JobStore
from services.trainer.reporter import JobReporter
from tests.factories import make_resolved, make_spec
from tlm_core.jobs.plan import plan_of

T = "default"


@pytest.fixture
def reporter(redis_client: redis.Redis) -> Iterator[JobReporter]:
    """Of the one job there is, in its first stage."""
    store = JobStore(redis_client)
    store.submit(T, make_spec(), make_resolved())
    job = store.claim("a", 60)
    assert job is not None
    reporter = JobReporter(store, T, job.id, job.attempt, interval=0.02)
    plan = plan_of(job)
    reporter.start_node(plan.node("prepare"), plan)
    yield reporter
    reporter.close()


def steps(redis_client: redis.Redis) -> list[int]:
    """Of the metric points that were told."""
    store = JobStore(redis_client)
    ((job,), _) = store.list_jobs(T)
    return [point["step"] for point in store.metrics(T, job.id)]


def cancelled(reporter: JobReporter, redis_client: redis.Redis) -> bool:
    """Whether a cancel reaches the worker."""
    store = JobStore(redis_client)
    ((job,), _) = store.list_jobs(T)
    store.cancel(T, job.id)
    deadline = time.monotonic() + 5
    while reporter.should_continue and time.monotonic() < deadline:
        time.sleep(0.01)
    return not reporter.should_continue


def test_what_was_told_while_redis_was_full_is_kept_and_a_cancel_still_reaches_the_worker(
    reporter: JobReporter, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis_client.config_set("maxmemory", 1)
    try:
        for step in (1, 2):
            reporter.metrics(step=step)
            deadline = time.monotonic() + 5
            while caplog.text.count("Cannot report to the job store now") < step and time.monotonic() < deadline:
                time.sleep(0.01)
    finally:
        redis_client.config_set("maxmemory", 0)
    assert cancelled(reporter, redis_client)
    reporter.close()
    assert steps(redis_client) == [1, 2]


def test_what_cannot_be_told_silences_no_worker(
    reporter: JobReporter, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    reporter.metrics(step=1, loss=float("nan"))  # no JSON
    deadline = time.monotonic() + 5
    while "A report was lost" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    reporter.metrics(step=2)
    assert cancelled(reporter, redis_client)
    reporter.close()
    assert steps(redis_client) == [2]
