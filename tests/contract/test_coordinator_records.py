"""Job records that a coordinator cannot read: they stop and delay no other job."""

from __future__ import annotations

import json

import pytest
import redis

from services.common.redis_client import FEED
from tests.contract.coordinator_harness import CoordinatorHarness, T
from tlm_core.errors import (
    UnreadableRecord,
)
from tlm_core.jobs.states import State


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
