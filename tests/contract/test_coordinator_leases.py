"""Leases of coordinators: who continues a job, and what renews a lease."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from prometheus_client import Gauge

from services.common.metrics import HELD, TOKENS
from services.common.redis_client import connect
from services.common.retriever_client import SelectionRun
from services.trainer.cluster import RayCluster, Status
from tests.contract.coordinator_harness import CoordinatorHarness, MovableClockStore, T
from tests.support import counted, wait_for
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import (
    ClusterUnavailable,
    EmptySelection,
    NonFiniteLoss,
    StorageUnavailable,
    StoreUnavailable,
    WorkerLost,
)
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State


def test_restarted_coordinator_keeps_the_slot_of_a_job_that_backs_off(harness: CoordinatorHarness) -> None:
    coordinator, job_id, later = harness.coordinator("killed"), harness.submit(), harness.submit(seeds=(3,))
    harness.cluster.statuses[harness.until_submitted(coordinator, job_id)] = Status.FAILED
    coordinator.round()
    restarted = harness.coordinator("restarted")
    restarted.round()
    restarted.round()
    assert [harness.job(job).state for job in (job_id, later)] == [State.QUEUED, State.QUEUED]
    harness.store.expire_deadlines()
    restarted.round()
    assert [harness.job(job).owner for job in (job_id, later)] == ["restarted", None]


def test_restarted_coordinator_counts_the_running_job_before_it_claims(harness: CoordinatorHarness) -> None:
    running, queued = harness.submit(), harness.submit(seeds=(3,))
    harness.until_submitted(harness.coordinator("killed"), running)
    restarted = harness.coordinator("restarted")
    for _ in range(2):
        restarted.round()
        assert harness.job(queued).state is State.QUEUED
        harness.store.expire_deadlines()
    assert [harness.job(job).owner for job in (running, queued)] == ["restarted", None]


def test_coordinator_does_not_count_the_jobs_of_a_living_one(harness: CoordinatorHarness) -> None:
    running, queued = harness.submit(), harness.submit(seeds=(3,))
    first, second = harness.coordinator("a"), harness.coordinator("b")
    harness.until_submitted(first, running)
    second.round()
    first.round()
    second.round()
    assert [harness.job(job).owner for job in (running, queued)] == ["a", "b"]


def test_stopped_coordinator_gives_up_its_leases(harness: CoordinatorHarness) -> None:
    job_id, stop = harness.submit(), threading.Event()
    coordinator = harness.coordinator("stopped")
    harness.until_submitted(coordinator, job_id)
    stop.set()
    coordinator.run(stop)
    harness.coordinator("next").round()
    assert (harness.job(job_id).owner, harness.job(job_id).attempt) == ("next", 1)


def test_stopped_coordinator_ends_its_round_after_one_step(harness: CoordinatorHarness) -> None:
    jobs, stop, seen = {harness.submit(seeds=(seed,)) for seed in range(3)}, threading.Event(), list[str]()
    coordinator = harness.coordinator(concurrency=4)
    coordinator.round()
    jobs.add(harness.submit(seeds=(9,)))

    def hang(submission: str) -> NoReturn:
        seen.append(submission)
        stop.set()  # SIGTERM arrives while Ray does not answer.
        raise ClusterUnavailable("Ray does not answer.")

    harness.cluster.status = hang  # type: ignore[method-assign]
    coordinator.run(stop)
    assert len(seen) == 1
    adopted = {job.id for _ in jobs if (job := harness.store.claim("next", 30))}
    assert adopted == jobs and {harness.job(job).attempt for job in jobs} == {1}


@pytest.mark.parametrize("component", ["ray", "storage"])
def test_coordinator_renews_all_leases_while_a_component_hangs(harness: CoordinatorHarness, component: str) -> None:
    coordinator, stop, hanging, answer = (
        harness.coordinator(concurrency=50, lease_seconds=6.0),  # claims 50 jobs meanwhile, also on a busy machine
        threading.Event(),
        threading.Event(),
        threading.Event(),
    )
    jobs = [harness.submit(seeds=(seed,)) for seed in range(50)]
    coordinator.round()
    place, name = (harness.cluster, "status") if component == "ray" else (harness.artifacts, "check")
    call = getattr(place, name)

    def hang(argument: Any) -> Any:
        hanging.set()
        answer.wait(30)
        return call(argument)

    setattr(place, name, hang)
    runner = threading.Thread(target=coordinator.run, args=(stop,))
    runner.start()
    try:
        assert hanging.wait(10)
        before = harness.store.now() + 6.5  # Later than the end of any lease that was renewed before the hang.
        wait_for(lambda: all(expiry > before for expiry in harness.store.leases().values()))
        assert len(harness.store.leases()) == len(jobs) and harness.store.claim("b", 30) is None
        coordinator.settings = coordinator.settings.model_copy(update={"hang_seconds": 0.0})
        assert wait_for(lambda: harness.store.claim("b", 30)).id in jobs, "the step hangs"
    finally:
        answer.set()
        stop.set()
        runner.join(20)
    assert harness.cluster.stopped == []


def test_coordinator_keeps_all_leases_while_ray_and_the_storage_hang(harness: CoordinatorHarness) -> None:
    """The time limits are a fifth of those in service. Half of the checks of the storage hang, and all calls of Ray."""
    coordinator = harness.coordinator(concurrency=50, lease_seconds=6.0, hang_seconds=24.0)
    jobs = [harness.submit(seeds=(seed,)) for seed in range(50)]
    checks, check = itertools.count(), harness.artifacts.check
    stop, close, hung = threading.Event(), threading.Event(), set[str]()

    def hang(ref: ManifestRef) -> None:
        if next(checks) % 2:
            hung.add("storage")
            close.wait(6)
            raise StorageUnavailable("The storage does not answer.")
        check(ref)

    harness.artifacts.check = hang  # type: ignore[method-assign]
    runner = threading.Thread(target=coordinator.run, args=(stop,))
    with socket.create_server(("127.0.0.1", 0), backlog=128) as half_open:  # The kernel accepts, and nobody answers.
        url = f"http://127.0.0.1:{half_open.getsockname()[1]}"
        http = httpx.Client(
            base_url=url, timeout=2.0, trust_env=False, event_hooks={"request": [lambda _: hung.add("ray")]}
        )
        coordinator.cluster = RayCluster(http)
        coordinator.round()
        runner.start()
        try:
            wait_for(lambda: hung == {"ray", "storage"})
            until = time.monotonic() + 2 * coordinator.settings.lease_seconds
            while time.monotonic() < until:
                leases = harness.store.leases()
                assert len(leases) == len(jobs) and min(leases.values()) > harness.store.now()
                assert harness.store.claim("b", 30) is None
                time.sleep(0.2)
        finally:
            close.set()
            stop.set()
            half_open.close()
            runner.join(60)
    assert not runner.is_alive()
    assert {harness.job(job).attempt for job in jobs} == {1}


def test_idle_coordinator_reports_no_hang(harness: CoordinatorHarness, caplog: pytest.LogCaptureFixture) -> None:
    coordinator = harness.coordinator(hang_seconds=60.0)
    coordinator._stepped_at -= 61.0
    coordinator.round()
    coordinator._renew_leases()
    assert "A step takes longer" not in caplog.text
    coordinator._stepped_at -= 61.0
    coordinator._renew_leases()
    assert "A step takes longer" in caplog.text


@pytest.mark.parametrize("gauge", [HELD, TOKENS])
def test_hanging_coordinator_shows_no_held_jobs_and_no_speed(harness: CoordinatorHarness, gauge: Gauge) -> None:
    coordinator, shown = harness.coordinator(hang_seconds=60.0), list[float]()
    gauge.set(1)
    for seconds in (0.0, 61.0):
        coordinator._stepped_at -= seconds
        coordinator._renew_leases()
        (figure,) = gauge.collect()
        shown.append(figure.samples[0].value)
    assert shown == [1, 0]


def test_coordinator_that_lost_its_lease_stops_and_submits_nothing(harness: CoordinatorHarness) -> None:
    job_id = harness.submit()
    coordinator, other = harness.coordinator("a"), harness.coordinator("b")
    submission = harness.until_submitted(coordinator, job_id)
    harness.beat(job_id, idle=601.0)
    status = harness.cluster.status

    def adopted_meanwhile(submission: str) -> Status:
        harness.store.expire_deadlines()
        assert harness.store.claim(other.owner, 30) is not None
        return status(submission)

    harness.cluster.status = adopted_meanwhile  # type: ignore[method-assign]
    losses = counted("tlm_lease_losses_total")
    coordinator.round()
    assert (harness.cluster.stopped, harness.job(job_id).owner) == ([], "b")
    assert counted("tlm_lease_losses_total") == losses + 1
    harness.cluster.status = status  # type: ignore[method-assign]
    assert harness.cluster.statuses[submission] is Status.RUNNING


def test_coordinator_that_lost_its_lease_before_submitting_submits_nothing(harness: CoordinatorHarness) -> None:
    job_id, coordinator, status = harness.submit(), harness.coordinator("a"), harness.cluster.status

    def adopted_meanwhile(submission: str) -> Status:
        harness.store.expire_deadlines()
        assert harness.store.claim("b", 30) is not None
        return status(submission)

    harness.cluster.status = adopted_meanwhile  # type: ignore[method-assign]
    losses = counted("tlm_lease_losses_total")
    for _ in range(5):
        coordinator.round()
    assert (harness.job(job_id).owner, harness.job(job_id).submissions, harness.cluster.statuses) == ("b", {}, {})
    assert counted("tlm_lease_losses_total") == losses + 1


def test_coordinator_that_lost_its_lease_leaves_the_selection_to_the_owner(harness: CoordinatorHarness) -> None:
    job_id, coordinator = harness.submit(), harness.coordinator("a")

    def adopted_meanwhile(_: JobRecord) -> SelectionRun:
        harness.store.expire_deadlines()
        assert harness.store.claim("b", 30) is not None
        return SelectionRun(state="failed", error=EmptySelection("no passage").as_dict())

    harness.selections.answer = adopted_meanwhile
    for _ in range(5):
        coordinator.round()
    assert (harness.job(job_id).owner, harness.job(job_id).state) == ("b", State.RUNNING)
    assert harness.selections.stopped == []


@pytest.mark.parametrize("state", [State.QUEUED, State.FAILED, State.SUCCEEDED])
def test_end_of_an_attempt_whose_answer_was_lost_is_no_lost_lease(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    job_id, later, coordinator = harness.submit(), harness.submit(seeds=(3,)), harness.coordinator()
    submission, move = harness.until_submitted(coordinator, job_id), harness.store._script["move"]
    if state is State.SUCCEEDED:
        harness.work(submission)
    elif state is State.FAILED:
        harness.store.report(T, job_id, 1, events=[("attempt.error", NonFiniteLoss("nan").as_dict())])
    harness.cluster.statuses[submission] = Status.FAILED

    def lose_answer(**options: Any) -> Any:
        move(**options)
        raise StoreUnavailable("Redis does not answer.")

    def figures() -> list[float]:
        requeues = counted("tlm_requeues_total", cause=WorkerLost.code)
        failures = counted("tlm_failures_total", cause=NonFiniteLoss.code)
        return [counted("tlm_lease_losses_total"), requeues, failures]

    losses, requeues, failures = figures()
    with monkeypatch.context() as patch, suppress(StoreUnavailable):
        patch.setitem(harness.store._script, "move", lose_answer)
        coordinator.round()
    coordinator.round()
    assert harness.job(job_id).state is state
    assert figures() == [losses, requeues + (state is State.QUEUED), failures + (state is State.FAILED)]
    starts = State.QUEUED if state is State.QUEUED else State.RUNNING
    assert harness.job(later).state is starts, "only a requeued job keeps its slot"


def test_submission_of_a_requeued_attempt_computes_nothing(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    late = harness.until_submitted(coordinator, job_id)
    harness.store.requeue(harness.job(job_id), "a", NonFiniteLoss("The loss is nan."), 60)
    events = harness.events(job_id)
    harness.work(late)
    assert (harness.cluster.statuses[late], harness.events(job_id)) == (Status.FAILED, events)


def test_coordinator_continues_the_jobs_of_a_killed_one(harness: CoordinatorHarness) -> None:
    job_id = harness.submit()
    for n in range(12):
        coordinator = harness.coordinator(f"c{n}")  # It is killed after two rounds, and its lease expires.
        coordinator.round()
        coordinator.round()
        if harness.job(job_id).state is State.SUCCEEDED:
            break
        for submission, status in list(harness.cluster.statuses.items()):
            if status is Status.RUNNING:
                harness.work(submission)
        harness.store.expire_deadlines()
    assert harness.job(job_id).state is State.SUCCEEDED
    assert harness.job(job_id).attempt == 1, "an adoption keeps the attempt"
    assert sorted(harness.cluster.commands) == [f"{job_id}.baseline.1", f"{job_id}.main.1"], "nothing starts twice"


@pytest.mark.parametrize("away", [False, True])
def test_every_round_touches_the_heartbeat_file(harness: CoordinatorHarness, tmp_path: Path, away: bool) -> None:
    if away:
        harness.store = MovableClockStore(connect("redis://127.0.0.1:1/0"))
    stop, heartbeat = threading.Event(), tmp_path / "scratch" / "heartbeat"
    runner = threading.Thread(target=harness.coordinator(poll_seconds=0.05).run, args=(stop,))
    runner.start()
    try:
        wait_for(heartbeat.exists)
        os.utime(heartbeat, (0, 0))
        wait_for(lambda: heartbeat.stat().st_mtime > 0)
    finally:
        stop.set()
        runner.join(20)
    assert not runner.is_alive()


def test_unexpected_error_does_not_end_the_thread_of_the_leases(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator, job_id = harness.coordinator(lease_seconds=0.3), harness.submit()
    coordinator.round()
    errors = [ValueError("unexpected"), StoreUnavailable("away")]
    renew = harness.store.renew

    def failing(*args: Any) -> bool:
        if errors:
            raise errors.pop(0)
        return renew(*args)

    monkeypatch.setattr(harness.store, "renew", failing)
    stopped, stop, ready = coordinator._stepped_at, threading.Event(), threading.Event()
    monkeypatch.setattr(coordinator, "round", lambda: ready.wait(20) and stop.wait(20))
    lease = harness.job(job_id).lease_until
    runner = threading.Thread(target=coordinator.run, args=(stop,))
    runner.start()
    try:
        wait_for(lambda: harness.job(job_id).lease_until != lease, 20)
        assert stopped == coordinator._stepped_at, "Only the thread renews."
    finally:
        ready.set()
        stop.set()
        runner.join(20)
    logged = [record.message for record in caplog.records if "'leases'" in record.message]
    assert logged == [
        f"Background task 'leases' skipped the lease of job {job_id}",
        "Background task 'leases' waits: away",
    ]


def test_unwritable_heartbeat_is_logged_once(harness: CoordinatorHarness, caplog: pytest.LogCaptureFixture) -> None:
    (harness.folder / "file").touch()
    coordinator = harness.coordinator(scratch=harness.folder / "file" / "scratch")
    coordinator.round()
    coordinator.round()
    assert caplog.text.count("Cannot write the heartbeat file") == 1
