"""Jobs that wait for Ray or the storage: which coordinator continues them, and when a wait ends."""

from __future__ import annotations

from typing import NoReturn

import pytest

from services.trainer.coordinator import Coordinator
from tests.contract.coordinator_harness import CoordinatorHarness, T
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import (
    ClusterUnavailable,
    StorageFull,
    StorageUnavailable,
    StoreUnavailable,
    TLMError,
)
from tlm_core.jobs.states import State


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


def test_submission_that_ray_never_received_is_no_interruption(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, job_id = harness.coordinator("first"), harness.coordinator("second"), harness.submit()

    def go_away(*_: object, **__: object) -> NoReturn:
        harness.cluster.away = True
        raise ClusterUnavailable("timed out")

    with monkeypatch.context() as patch:
        patch.setattr(harness.cluster, "submit", go_away)
        while not harness.job(job_id).submissions:
            first.round()
        harness.rounds_until(first, 140)
    harness.cluster.away = False
    submissions = harness.job(job_id).submissions
    for _ in range(3):
        second.round()
    job = harness.job(job_id)
    assert (job.owner, job.attempt, job.interruptions, job.submissions) == ("second", 1, 0, submissions)
    assert set(submissions.values()) == harness.cluster.commands.keys()


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


def test_wrong_settings_of_the_cluster_do_not_give_a_job_up(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.cluster.offered_gpus = 4.0
    harness.rounds_until(coordinator, 400)
    assert harness.events(job_id).count("job.waiting") == 1
    job = harness.job(job_id)
    assert (job.owner, job.lease_until and job.lease_until > job.updated_at) == (coordinator.owner, True)
    harness.cluster.offered_gpus = 0.0
    harness.until_submitted(coordinator, job_id)
