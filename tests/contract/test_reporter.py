"""Reports of a worker while Redis is full, and reports that cannot be sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn
from unittest.mock import Mock

import pytest
import redis

from services.common.jobstore import JobStore
from services.common.situation import Situation
from services.trainer.reporter import JobReporter
from tests.factories import make_resolved, make_spec
from tests.support import wait_for
from tlm_core.errors import StoreUnavailable, UnreadableRecord
from tlm_core.jobs.spec import Beat
from tlm_core.jobs.states import State
from tlm_core.pulse import PULSE

T = "default"


@pytest.fixture
def reporter(redis_client: redis.Redis) -> Iterator[JobReporter]:
    """Return a reporter of the only job, in its first stage."""
    store = JobStore(redis_client)
    store.submit(T, make_spec(), make_resolved(node_seconds={"prepare": 1e4, "export": 1e4}))
    job = store.claim("a", 60)
    assert job is not None
    reporter = JobReporter(store, T, job.id, job.attempt, "main", interval=0.02)
    situation = Situation.read(store, job)
    reporter.start_node(situation, situation.plan.node("prepare"))
    yield reporter
    reporter.close()


def steps(redis_client: redis.Redis) -> list[int]:
    """Return the steps of the metric points in the store."""
    store = JobStore(redis_client)
    ((job,), _) = store.list_jobs(T)
    return [point["step"] for point in store.metrics(T, job.id)]


def cancelled(reporter: JobReporter, redis_client: redis.Redis) -> bool:
    """Cancel the job and return whether the reporter learns of it."""
    store = JobStore(redis_client)
    ((job,), _) = store.list_jobs(T)
    store.cancel(T, job.id)
    deadline = time.monotonic() + 5
    while reporter.should_continue and time.monotonic() < deadline:
        time.sleep(0.01)
    return not reporter.should_continue


def test_reports_go_on_after_a_record_was_unreadable(
    reporter: JobReporter, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable = threading.Event()

    def must_stop(*_: str) -> NoReturn:
        unreadable.set()
        raise UnreadableRecord("damaged")

    monkeypatch.setattr(reporter._store, "must_stop", must_stop)
    assert unreadable.wait(5)
    reporter.metrics(step=1)
    wait_for(lambda: steps(redis_client) == [1], 5)


def test_reports_are_buffered_while_redis_is_full_and_a_cancel_arrives(
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


def test_report_whose_answer_is_lost_is_recorded_once(
    reporter: JobReporter, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, lost, store = reporter._store.report, list[None](), JobStore(redis_client)
    ((job,), _) = store.list_jobs(T)

    def lose_answers(*args: Any, **values: Any) -> State:
        state = report(*args, **values)
        if len(lost) < 3:
            lost.append(None)
            raise StoreUnavailable("Redis does not answer.")
        return state

    monkeypatch.setattr(reporter._store, "report", lose_answers)
    for step in range(1, 6):
        reporter.event("stage.started", node="prepare", step=step)
        reporter.metrics(step=step)
        reporter.log_line(f"line {step}")
        reporter.flush()
    reporter.close()
    assert len(lost) == 3
    assert [event.data["step"] for event in store.events(T, job.id) if event.type == "stage.started"] == [1, 2, 3, 4, 5]
    assert steps(redis_client) == [1, 2, 3, 4, 5]
    assert [line["line"] for line in store.logs(T, job.id)] == [f"line {step}" for step in range(1, 6)]


def test_failed_report_is_repeated_before_the_next_heartbeat(
    reporter: JobReporter, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter._heartbeat = 1e9
    reporter.flush()
    report, outages = reporter._store.report, [StoreUnavailable("Redis does not answer.")]

    def away_once(*args: Any, **values: Any) -> State:
        if outages:
            raise outages.pop()
        return report(*args, **values)

    monkeypatch.setattr(reporter._store, "report", away_once)
    reporter.metrics(step=1)
    wait_for(lambda: steps(redis_client) == [1])


def test_entries_above_the_limit_are_dropped_during_an_outage(
    reporter: JobReporter, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.reporter._MAX_PENDING", 3)
    report, outage = reporter._store.report, Mock(side_effect=StoreUnavailable("Redis does not answer."))
    monkeypatch.setattr(reporter._store, "report", outage)
    for step in range(1, 9):
        reporter.metrics(step=step)
        reporter.flush()
    monkeypatch.setattr(reporter._store, "report", report)
    reporter.flush()
    assert steps(redis_client) in ([6, 7, 8], [1, 6, 7, 8]), "The first failed report is sent unchanged."


def test_invalid_report_does_not_end_the_reporter(
    reporter: JobReporter, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    reporter.metrics(step=1, loss=float("nan"))  # not valid JSON
    deadline = time.monotonic() + 5
    while "A report was lost" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    reporter.metrics(step=2)
    assert cancelled(reporter, redis_client)
    reporter.close()
    assert steps(redis_client) == [2]


def test_reports_of_a_worker_without_progress_say_so(redis_client: redis.Redis, reporter: JobReporter) -> None:
    store = JobStore(redis_client)
    ((job,), _) = store.list_jobs(T)

    def beat() -> Beat | None:
        return store.get(T, job.id).beats.get("main")

    reporter._heartbeat = 0.02
    with PULSE.pace(steady=True):  # CPU time counts as no progress.
        wait_for(lambda: (now := beat()) and now.idle > 0.3)
        reporter.progress(step=1, total=2, rate=None, unit="steps", eta_seconds=None)
        wait_for(lambda: (now := beat()) and now.idle < 0.3)


def test_stage_without_steps_advances_with_its_heartbeats(redis_client: redis.Redis, reporter: JobReporter) -> None:
    store = JobStore(redis_client)
    ((job,), _) = store.list_jobs(T)

    def left() -> float:
        progress = store.get(T, job.id).progress
        return progress.eta_seconds or 0.0 if progress else 0.0

    wait_for(lambda: left() > 0)
    first = left()
    reporter._heartbeat = 0.02
    wait_for(lambda: left() < first)


def test_flushed_report_is_stored_at_once(redis_client: redis.Redis, reporter: JobReporter) -> None:
    reporter._interval = 60.0
    store = JobStore(redis_client)
    ((job,), _) = store.list_jobs(T)
    for number in range(3):
        reporter.log_line(f"line {number}")
        reporter.flush()
        assert [line["line"] for line in store.logs(T, job.id)] == [f"line {n}" for n in range(number + 1)]


def test_beats_of_a_worker_that_trains_have_its_speed(redis_client: redis.Redis, reporter: JobReporter) -> None:
    store = JobStore(redis_client)
    ((job,), _) = store.list_jobs(T)
    for unit, rate in (("tokens", 512.5), ("texts", 0.0)):
        reporter.progress(step=1, total=2, rate=512.5, unit=unit, eta_seconds=None)
        wait_for(lambda rate=rate: (beats := store.get(T, job.id).beats) and beats["main"].rate == rate)


def test_log_has_a_line_at_each_tenth_of_a_stage(reporter: JobReporter, redis_client: redis.Redis) -> None:
    for step in range(1, 96):
        reporter.metrics(step=step, mlm=8.0 - step / 20, task=None)
        reporter.progress(step=step, total=95, rate=2_261.4, unit="tokens", eta_seconds=None)
    reporter.close()
    store = JobStore(redis_client)
    ((job,), _) = store.list_jobs(T)
    lines = [line["line"] for line in store.logs(T, job.id)]
    assert len(lines) == 10
    assert lines[0] == "prepare: step 10 of 95, mlm 7.5, 2,261 tokens/s"


def test_log_states_each_validation_score_once(reporter: JobReporter, redis_client: redis.Redis) -> None:
    for step in range(1, 11):
        reporter.metrics(step=step, task=1.0 - step / 20)
        if step in (3, 7):
            reporter.metrics(step=step, score=step / 10, validation_loss=0.5)
        reporter.progress(step=step, total=10, rate=None, unit="tokens", eta_seconds=None)
    reporter.close()
    store = JobStore(redis_client)
    ((job,), _) = store.list_jobs(T)
    lines = [line["line"] for line in store.logs(T, job.id)]
    assert [line for line in lines if "score" in line] == [
        "prepare: step 3 of 10, task 0.85, validation_loss 0.5, score 0.3",
        "prepare: step 7 of 10, task 0.65, validation_loss 0.5, score 0.7",
    ]
    assert lines[3] == "prepare: step 4 of 10, task 0.8"


def test_share_of_the_job_never_falls(reporter: JobReporter, redis_client: redis.Redis) -> None:
    """A faster rate than before shortens the finished part, but not the later stages."""
    store, shares = JobStore(redis_client), list[float]()
    ((job,), _) = store.list_jobs(T)
    for step, seconds in ((50, 5_000.0), (51, 1.0), (100, 0.0)):
        reporter.progress(step=step, total=100, rate=1.0, unit="steps", eta_seconds=seconds)
        reporter.flush()
        progress = store.get(T, job.id).progress
        assert progress is not None and progress.step == step
        shares.append(progress.share)
    assert shares == sorted(shares) and shares[0] == shares[1] < shares[2]


def test_time_left_counts_the_seeds_that_work_now(redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    job, _ = store.submit(T, make_spec(seeds=(0, 1)), make_resolved(node_seconds={"joint.s0": 50.0, "joint.s1": 50.0}))
    claimed = store.claim("a", 60)
    assert claimed is not None
    situation = Situation.read(store, claimed)
    reporter, left = JobReporter(store, T, job.id, claimed.attempt, "seed.s0", interval=60.0), list[float | None]()
    reporter.start_node(situation, situation.plan.node("joint.s0"))
    for phase in ("waiting", "working"):
        store.report(T, job.id, claimed.attempt, beat=("seed.s1", Beat(phase=phase)))
        reporter.progress(step=50, total=100, rate=1.0, unit="steps", eta_seconds=50.0)
        reporter.flush()
        progress = store.get(T, job.id).progress
        left.append(progress.eta_seconds if progress else None)
    reporter.close()
    assert left == [50 + 100, 50], "Two seeds at once take 50 s more, one after the other 150 s."
