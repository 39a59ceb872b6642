"""The job store on a real Redis: transitions, events without gaps, the queue, and claims."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis

from services.common.jobstore import JobStore, Removal
from tests.contract.coordinator_harness import ERROR, MovableClockStore, T, bring_to, claim, submit
from tests.factories import make_resolved, make_spec
from tests.redis_server import RedisServer
from tlm_core.errors import IdempotencyMismatch, IllegalTransition, NotFound, StaleAttempt, StoreFull, StoreUnavailable
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import TERMINAL, TRANSITIONS, State, Verb


def test_full_redis_rejects_jobs_but_allows_deletion(store: JobStore, redis_client: redis.Redis) -> None:
    job = bring_to(store, State.CANCELLED)
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreFull, match="Raise its maxmemory or delete old jobs"):
            submit(store)
        store.delete(job, Removal(T, job.id))
    finally:
        redis_client.config_set("maxmemory", 0)
    with pytest.raises(NotFound):
        store.get(T, job.id)


@pytest.mark.parametrize(
    ("state", "remedy"), [(State.RUNNING, "Cancel it"), (State.CANCELLING, "Wait until it is cancelled")]
)
def test_deletion_of_an_unfinished_job_states_the_remedy(store: JobStore, state: State, remedy: str) -> None:
    job = bring_to(store, state)
    with pytest.raises(IllegalTransition, match=f"is {state}. {remedy} before you delete it"):
        store.delete(job, Removal(T, job.id))


def test_store_is_empty_until_the_first_dataset_or_job(store: JobStore, redis_client: redis.Redis) -> None:
    redis_client.set("tlm:{other}:webhooks", "no file")
    assert store.is_empty()
    redis_client.zadd("tlm:{other}:datasets", {"ds_1": 0})
    assert not store.is_empty()
    redis_client.delete("tlm:{other}:datasets")
    submit(store)
    assert not store.is_empty()


def test_full_redis_assigns_no_job_and_loses_none(store: JobStore, redis_client: redis.Redis) -> None:
    job = submit(store)
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreFull):
            store.claim("a", 30)
    finally:
        redis_client.config_set("maxmemory", 0)
    assert (claim(store).id, store.get(T, job.id).attempt) == (job.id, 1)


def apply(store: JobStore, verb: Verb, job: JobRecord) -> None:
    match verb:
        case Verb.REPORT:
            store.report(T, job.id, job.attempt)
        case Verb.PAUSE:
            store.pause(T, job.id)
        case Verb.RESUME:
            store.resume(T, job.id)
        case Verb.CANCEL:
            store.cancel(T, job.id)
        case Verb.CONFIRM_PAUSED:
            store.confirm_paused(job, "a")
        case Verb.CONFIRM_CANCELLED:
            store.confirm_cancelled(job, "a")
        case Verb.FINISH:
            store.finish(job, "a", {})
        case Verb.FAIL:
            store.fail(job, "a", ERROR)
        case Verb.REQUEUE:
            store.requeue(job, "a", ERROR, 0)


# A client repeats these when their answers are lost.
REPEATABLE = {
    Verb.PAUSE: (State.PAUSING, State.PAUSED),
    Verb.RESUME: (State.QUEUED, State.RUNNING),
    Verb.CANCEL: (State.CANCELLING, State.CANCELLED),
}


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("verb", [v for v in TRANSITIONS if v is not Verb.CLAIM])
def test_verb_moves_a_job_as_the_transition_table_says(store: JobStore, state: State, verb: Verb) -> None:
    job = bring_to(store, state)
    assert job.state is state
    target = TRANSITIONS[verb].get(state)
    if target is not None:
        apply(store, verb, job)
        assert store.get(T, job.id).state is target
    elif state in REPEATABLE.get(verb, ()):
        apply(store, verb, job)
        assert store.get(T, job.id) == job
    else:
        with pytest.raises((IllegalTransition, StaleAttempt)):
            apply(store, verb, job)
        assert store.get(T, job.id) == job, "a rejected verb changes nothing"
    events = store.events(T, job.id)
    assert [e.seq for e in events] == list(range(1, store.get(T, job.id).last_event + 1))


@pytest.mark.parametrize("state", [State.QUEUED, State.PAUSED, State.RUNNING])
def test_every_paused_or_cancelled_job_has_both_events(store: JobStore, state: State) -> None:
    job = bring_to(store, state)
    if state is not State.PAUSED:
        store.pause(T, job.id)
    if state is State.RUNNING:
        store.confirm_paused(job, "a")
    store.cancel(T, job.id)
    types = [event.type for event in store.events(T, job.id)]
    assert types[-4:] == ["job.pause_requested", "job.paused", "job.cancel_requested", "job.cancelled"]


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_terminal_job_is_never_claimed(store: JobStore, state: State) -> None:
    bring_to(store, state)
    assert store.claim("b", 30) is None


def test_claim_from_the_queue_starts_an_attempt_but_an_adoption_does_not(store: MovableClockStore) -> None:
    submit(store)
    first = claim(store, "a", lease=60)
    assert (first.attempt, first.owner) == (1, "a")
    assert store.claim("b", 30) is None, "the lease is valid"
    store.expire_deadlines()
    adopted = claim(store, "b")
    assert (adopted.attempt, adopted.owner) == (1, "b")
    with pytest.raises(StaleAttempt):
        store.finish(first, "a", {})
    assert not store.renew(T, first.id, "a", 30)
    assert store.renew(T, adopted.id, "b", 30)
    store.requeue(adopted, "b", ERROR, 0)
    second = claim(store, "c")
    assert (second.attempt, second.failures, second.losses, second.interruptions) == (2, 0, 1, 1)


def test_requeued_job_waits_for_its_delay(store: MovableClockStore) -> None:
    submit(store)
    store.requeue(claim(store), "a", ERROR, 60)
    assert store.claim("a", 30) is None
    store.expire_deadlines()
    assert claim(store).attempt == 2


def test_resumed_job_starts_without_its_delay(store: JobStore) -> None:
    job = submit(store)
    store.requeue(claim(store), "a", ERROR, 600)
    store.pause(T, job.id)
    assert store.resume(T, job.id).due_at is None
    assert claim(store).attempt == 2


def test_jobs_start_in_the_order_of_their_submission(store: JobStore, redis_client: redis.Redis) -> None:
    first, second, third = (submit(store).id for _ in range(3))
    store.pause(T, third)
    store.resume(T, third)
    store.requeue(claim(store), "a", ERROR, 60)
    assert claim(store).id == second, "another coordinator has room during the delay"
    redis_client.hdel(f"tlm:{{{T}}}:job:{first}", "due_at")
    requeued = claim(store)
    assert (requeued.id, requeued.attempt, requeued.due_at) == (first, 2, None)
    assert claim(store).id == third


def test_queue_survives_a_clock_that_goes_back(store: MovableClockStore, redis_client: redis.Redis) -> None:
    requeued, delayed = submit(store).id, submit(store).id
    for _ in range(2):
        store.requeue(claim(store), "a", ERROR, 60)
    hour_ahead = {"created_at": store.now() + 3600, "updated_at": store.now() + 3600, "due_at": store.now() + 3660}
    redis_client.hset(f"tlm:{{{T}}}:job:{requeued}", mapping=hour_ahead)
    redis_client.zadd("tlm:queue", {f"{T}/{requeued}": store.now() + 3600})
    assert claim(store).id == requeued
    assert store.claim("a", 30) is None, f"{delayed} backs off"


def test_lease_and_queue_entry_without_a_record_are_dropped(store: JobStore, redis_client: redis.Redis) -> None:
    redis_client.zadd("tlm:leases", {f"{T}/ghost": 0})
    redis_client.zadd("tlm:queue", {f"{T}/lost": 0})
    job = submit(store)
    assert claim(store).id == job.id
    assert list(store.leases()) == [f"{T}/{job.id}"]
    assert not redis_client.exists("tlm:queue", f"tlm:{{{T}}}:job:ghost", f"tlm:{{{T}}}:job:lost")


def test_lease_of_the_time_before_the_clock_went_back_has_expired(store: JobStore, redis_client: redis.Redis) -> None:
    job = bring_to(store, State.RUNNING)
    redis_client.zadd("tlm:leases", {f"{T}/{job.id}": store.now() + 3600})
    assert (claim(store, "b").id, store.claim("c", 30)) == (job.id, None)


def test_idempotency_key_returns_the_same_job_and_rejects_another_body(store: JobStore) -> None:
    results: list[tuple[JobRecord, bool]] = []

    def submit_once() -> None:
        results.append(store.submit(T, make_spec(), make_resolved(), idempotency_key="k"))

    threads = [threading.Thread(target=submit_once) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job, _ in results}) == 1
    assert sum(new for _, new in results) == 1
    with pytest.raises(IdempotencyMismatch):
        store.submit(T, make_spec(scale="small"), make_resolved(), idempotency_key="k")
    assert store.submitted_with(T, make_spec(), "k") == results[0][0]
    assert store.submitted_with(T, make_spec(), "unused") is None
    with pytest.raises(IdempotencyMismatch):
        store.submitted_with(T, make_spec(scale="small"), "k")
    assert store.submit("other", make_spec(), make_resolved(), idempotency_key="k")[1], (
        "another tenant has its own keys"
    )


def test_two_coordinators_never_claim_the_same_job(store: JobStore) -> None:
    for _ in range(30):
        submit(store)
    claimed: list[str] = []

    def work(owner: str) -> None:
        while job := store.claim(owner, 30):
            claimed.append(job.id)

    threads = [threading.Thread(target=work, args=(f"c{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == 30


def test_accepted_job_survives_a_killed_redis(tmp_path: Any) -> None:
    server = RedisServer(tmp_path)
    server.start()
    client = server.client()
    store = JobStore(client)
    job = submit(store, idempotency_key="k")
    server.kill()
    with pytest.raises(StoreUnavailable, match=r"refused\. Check"):
        store.get(T, job.id)
    server.start()
    try:
        assert store.get(T, job.id) == job
        assert submit(store, idempotency_key="k").id == job.id
    finally:
        client.close()
        server.kill()
