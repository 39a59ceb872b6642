"""Leases of coordinators: who continues a job, and which records hold up no other job."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
import redis

from services.common.redis_client import FEED, connect
from services.common.retriever_client import SelectionRun
from services.trainer.cluster import RayCluster, Status
from services.trainer.coordinator import Coordinator
from tests.contract.coordinator_harness import CoordinatorHarness, MovableClockStore, T
from tests.support import counted, wait_for
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import (
    ClusterUnavailable,
    EmptySelection,
    NonFiniteLoss,
    StorageFull,
    StorageUnavailable,
    StoreUnavailable,
    TLMError,
    UnreadableRecord,
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


def test_coordinator_that_cannot_reach_ray_leaves_its_job_to_another(harness: CoordinatorHarness) -> None:
    blind, sees, job_id = harness.coordinator("blind"), harness.coordinator("sees"), harness.submit()
    submission = harness.until_submitted(blind, job_id)
    harness.cluster.away = True
    harness.rounds_until(blind, 140)
    blind.round()
    assert harness.events(job_id).count("job.waiting") == 1
    assert harness.store.obstacle() == "The Ray cluster does not answer."
    # The alert JobsStand uses these figures.
    running = next(f.value for f in harness.store.figures(T) if f.labels == {"state": State.RUNNING})
    assert (running, blind._held) == (1, {})
    harness.cluster.away = False
    sees.round()
    assert harness.store.obstacle() == ""
    assert (harness.job(job_id).owner, harness.job(job_id).attempt) == ("sees", 1)
    harness.work(submission)
    sees.round()
    queued = harness.submit(seeds=(3,))
    blind.round()
    assert (harness.job(job_id).state, harness.job(queued).owner) == (State.SUCCEEDED, "blind"), "it reaches Ray again"


def test_job_is_left_to_another_coordinator_although_the_clock_went_back(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.until_submitted(coordinator, job_id)
    harness.cluster.away = True
    coordinator.round()
    harness.store.ahead = -3600
    harness.rounds_until(coordinator, 100 - 3600)
    assert coordinator._held.keys() == {job_id}
    harness.rounds_until(coordinator, 140 - 3600)
    assert coordinator._held == {}


def test_reason_of_a_wait_is_reported_once_redis_answers(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.until_submitted(coordinator, job_id)
    harness.cluster.away = True

    def away(*_: object, **__: object) -> NoReturn:
        raise StoreUnavailable("Redis does not answer.")

    with monkeypatch.context() as patch, pytest.raises(StoreUnavailable):
        patch.setattr(harness.store, "report", away)
        coordinator.round()
    for _ in range(3):
        coordinator.round()
    assert harness.events(job_id).count("job.waiting") == 1


def without_storage(harness: CoordinatorHarness, owner: str) -> Coordinator:
    """Return a coordinator whose storage is not mounted. Its jobs wait once they have an artifact."""
    coordinator = harness.coordinator(owner)
    coordinator.artifacts = ArtifactStore(str(harness.folder / "empty"), harness.folder / "cache", is_new=lambda: False)
    return coordinator


def test_coordinator_without_its_storage_leaves_its_job_to_another(harness: CoordinatorHarness) -> None:
    blind, sees, job_id = without_storage(harness, "blind"), harness.coordinator("sees"), harness.submit()
    harness.rounds_until(blind, 160)
    blind.round()
    assert harness.store.obstacle() == "The storage does not answer."
    sees.round()
    assert (harness.job(job_id).owner, harness.job(job_id).attempt) == ("sees", 1)
    queued = harness.submit(seeds=(3,))
    blind.round()
    assert harness.job(queued).state is State.QUEUED
    blind.artifacts = harness.artifacts
    blind.round()
    assert harness.job(queued).owner == "blind"


def test_stage_that_never_reaches_the_storage_leaves_its_job_to_another(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, job_id = harness.coordinator("blind"), harness.submit()
    harness.validate_error = StorageUnavailable("The storage does not answer.")
    monkeypatch.setattr(harness.artifacts, "answers", lambda: False)
    harness.rounds_until(coordinator, 100)
    assert coordinator._held.keys() == {job_id}
    harness.rounds_until(coordinator, 200)
    assert (harness.events(job_id).count("job.waiting"), coordinator._held) == (1, {})
    harness.validate_error = None
    other = harness.coordinator("sees")
    harness.until_submitted(other, job_id)
    assert (harness.job(job_id).owner, harness.job(job_id).attempt) == ("sees", 1)


@pytest.mark.parametrize("error", [StorageUnavailable("It does not answer."), StorageFull("It is full.")])
def test_start_of_a_stage_ends_a_wait_unless_for_the_storage(harness: CoordinatorHarness, error: TLMError) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.validate_error = error
    coordinator.round()
    for _ in range(3):  # The stage fails, starts and fails.
        coordinator.round()
        assert coordinator._held[job_id].waiting == error.code
    coordinator._held[job_id].waiting = ClusterUnavailable.code
    coordinator.round()
    assert coordinator._held[job_id].waiting is None


def test_running_stage_without_an_error_does_not_prolong_a_wait(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    coordinator.round()
    held = coordinator._held[job_id]
    assert held.local.runs
    held.waiting = StorageUnavailable.code
    coordinator.round()
    assert held.waiting is None


def test_probe_of_a_hanging_storage_delays_no_renewal_of_leases(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each call to the storage takes 100 s."""
    coordinator, probes = harness.coordinator(concurrency=3), list[float]()
    jobs = [harness.submit(seeds=(seed,)) for seed in range(3)]
    coordinator.round()
    coordinator.round()

    def check(_: ManifestRef) -> NoReturn:
        coordinator._stepped_at -= 100
        raise StorageUnavailable("The storage does not answer.")

    def probe() -> NoReturn:
        probes.append(harness.store.ahead)
        coordinator._stepped_at -= 100
        coordinator._renew_leases()
        raise StorageUnavailable("The storage does not answer.")

    monkeypatch.setattr(harness.artifacts, "check", check)
    monkeypatch.setattr(harness.artifacts, "check_mounted", probe)
    harness.rounds_until(coordinator, 200)
    assert len(probes) == len(set(probes)) >= 4, "one probe in each round"
    assert [harness.events(job)[-1] for job in jobs] == ["job.waiting"] * 3
    assert "A step takes longer" not in caplog.text


def test_storage_that_no_coordinator_reaches_costs_no_attempt(harness: CoordinatorHarness) -> None:
    job_id, cancelled = harness.submit(), harness.submit(seeds=(3,))
    coordinators = [without_storage(harness, "a"), without_storage(harness, "b")]
    while harness.store.ahead < 600:
        harness.store.ahead += 20
        for coordinator in coordinators:
            coordinator.round()
    assert [harness.events(job).count("job.adopted") for job in (job_id, cancelled)] == [0, 0], "no circle"
    harness.store.cancel(T, cancelled)
    coordinators[0].round()
    assert harness.job(cancelled).state is State.CANCELLED
    coordinators[1].artifacts = harness.artifacts
    job = harness.until_ended(coordinators[1], job_id)
    assert (job.state, job.attempt, job.losses) == (State.SUCCEEDED, 1, 0)


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
    submission, run = harness.until_submitted(coordinator, job_id), harness.store._run
    if state is State.SUCCEEDED:
        harness.work(submission)
    elif state is State.FAILED:
        harness.store.report(T, job_id, 1, events=[("attempt.error", NonFiniteLoss("nan").as_dict())])
    harness.cluster.statuses[submission] = Status.FAILED

    def lose_answer(script: str, *args: Any) -> Any:
        answer = run(script, *args)
        if script == "move":
            raise StoreUnavailable("Redis does not answer.")
        return answer

    def figures() -> list[float]:
        requeues = counted("tlm_requeues_total", cause=WorkerLost.code)
        failures = counted("tlm_failures_total", cause=NonFiniteLoss.code)
        return [counted("tlm_lease_losses_total"), requeues, failures]

    losses, requeues, failures = figures()
    with monkeypatch.context() as patch, suppress(StoreUnavailable):
        patch.setattr(harness.store, "_run", lose_answer)
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


def test_wrong_settings_of_the_cluster_do_not_give_a_job_up(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.cluster.offered_gpus = 4.0
    harness.rounds_until(coordinator, 400)
    assert harness.events(job_id).count("job.waiting") == 1
    job = harness.job(job_id)
    assert (job.owner, job.lease_until and job.lease_until > job.updated_at) == (coordinator.owner, True)
    harness.cluster.offered_gpus = 0.0
    harness.until_submitted(coordinator, job_id)


def test_job_with_a_record_of_another_release_is_released(
    harness: CoordinatorHarness, redis_client: redis.Redis
) -> None:
    coordinator, unreadable = harness.coordinator(), harness.submit()
    coordinator.round()
    redis_client.hset(f"tlm:{{{T}}}:job:{unreadable}", "resolved", '{"of_tomorrow": 1}')
    coordinator.round()
    assert harness.until_submitted(coordinator, harness.submit())


def test_unreadable_running_record_does_not_grow(harness: CoordinatorHarness, redis_client: redis.Redis) -> None:
    coordinator, unreadable = harness.coordinator(), harness.submit()
    coordinator.round()
    redis_client.hset(f"tlm:{{{T}}}:job:{unreadable}", "resolved", '{"of_tomorrow": 1}')
    for owner in ("b", "c", "b", "b"):
        harness.store.expire_deadlines()
        harness.coordinator(owner).round()
        assert redis_client.hget(f"tlm:{{{T}}}:job:{unreadable}", "owner") == owner
    assert harness.events(unreadable).count("job.adopted") == 1
    assert sum(entry["type"] == "job.adopted" for _, entry in redis_client.xrange(FEED)) == 1


def test_damaged_record_stops_no_other_job(harness: CoordinatorHarness, redis_client: redis.Redis) -> None:
    coordinator = harness.coordinator(concurrency=2)
    damaged, other = harness.submit(), harness.submit(seeds=(3,))
    harness.until_submitted(coordinator, damaged)
    redis_client.hset(f"tlm:{{{T}}}:job:{damaged}", "progress", "{")
    harness.work(harness.until_submitted(coordinator, other))
    coordinator.round()
    assert harness.job(other).state is State.SUCCEEDED


def test_damaged_record_delays_no_renewal_of_another_lease(
    harness: CoordinatorHarness, redis_client: redis.Redis
) -> None:
    """The first round hangs, so only the thread renews."""
    coordinator, damaged, other = harness.coordinator(concurrency=2), harness.submit(), harness.submit(seeds=(3,))
    coordinator.round()
    redis_client.set(f"tlm:{{{T}}}:job:{damaged}", "damaged")
    lease = harness.job(other).lease_until
    with coordinator.leases.round():
        coordinator._renew_leases()
    assert harness.job(other).lease_until != lease
    assert list(coordinator.leases.skipped) == [f"the lease of job {damaged}"]


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
    monkeypatch.setattr(coordinator, "_round_or_forget_time", lambda: ready.wait(20) and stop.wait(20))
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


def test_damaged_queued_record_blocks_no_claim(harness: CoordinatorHarness, redis_client: redis.Redis) -> None:
    damaged, other = harness.submit(), harness.submit(seeds=(3,))
    redis_client.hset(f"tlm:{{{T}}}:job:{damaged}", "attempt", "damaged")
    assert harness.until_submitted(harness.coordinator(), other)


def test_job_of_another_release_does_not_block_others(harness: CoordinatorHarness, redis_client: redis.Redis) -> None:
    unreadable = harness.submit()
    key = f"tlm:{{{T}}}:job:{unreadable}"
    known = redis_client.hget(key, "resolved")
    newer = {**json.loads(known), "recipe": {**json.loads(known)["recipe"], "of_tomorrow": 1}}
    redis_client.hset(key, "resolved", json.dumps(newer))
    ours = harness.submit()
    coordinator = harness.coordinator()
    coordinator.round()
    with pytest.raises(UnreadableRecord, match=rf"{unreadable}.*of_tomorrow"):
        harness.job(unreadable)
    assert harness.until_submitted(coordinator, ours)
    redis_client.hset(key, "resolved", known)  # a coordinator of the other release reads this record
    harness.store.expire_deadlines()
    assert harness.until_submitted(harness.coordinator("b", concurrency=4), unreadable)
