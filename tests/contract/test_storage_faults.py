"""A job ends well although the storage refuses one of its calls, whichever it is."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from services.trainer.cluster import Status
from tests.contract.coordinator_harness import CoordinatorHarness, MovableClockStore
from tests.trainer_fakes import counting_stage
from tlm_core.artifacts import storage_errors
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import TERMINAL, State


class FaultyStore(ArtifactStore):
    """Refuses call number `refused`, counted from 1, with an error of the file system."""

    calls = 0
    refused = 0
    number = errno.EIO

    @contextmanager
    def errors(self, action: str, *, writes: bool = False) -> Iterator[None]:
        self.calls += 1
        with storage_errors(action):
            if self.calls == self.refused:
                raise OSError(self.number, "refused")
        with super().errors(action, writes=writes):
            yield


def run(harness: CoordinatorHarness) -> JobRecord:
    coordinator, job_id = harness.coordinator(), harness.submit()
    for _ in range(30):
        coordinator.round()
        job = harness.job(job_id)
        if job.state in TERMINAL:
            return job
        for submission in job.submissions.values():
            if harness.cluster.statuses.get(submission) is Status.RUNNING:
                harness.work(submission, joint=counting_stage(2))
        harness.store.expire_deadlines()
    raise AssertionError(f"still {job.state}: {job.error}")


@pytest.mark.parametrize(("number", "first"), [(errno.EIO, 1), (errno.ENOSPC, 2)])
def test_job_succeeds_although_a_call_to_the_storage_fails(
    redis_client: redis.Redis, tmp_path: Path, number: int, first: int
) -> None:
    for refused in itertools.count(first, 2):
        redis_client.flushall()
        folder = tmp_path / str(refused)
        harness = CoordinatorHarness(MovableClockStore(redis_client), folder)
        store = FaultyStore(str(folder / "storage"), folder / "cache")
        harness.artifacts = harness.selections._artifacts = store
        store.number, store.refused = number, refused
        job = run(harness)
        assert (job.state, job.failures) == (State.SUCCEEDED, 0), f"call {refused}: {job.error}"
        if store.calls < refused:
            break
    assert refused > 60, "each second call was refused once"
