"""The job store on a real Redis: who may do what when, events without gaps, fencing."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import redis

from services.common.jobstore import CheckpointRef, JobStore, Removal
from tests.factories import make_resolved, make_spec
from tests.redis_server import RedisServer
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import (
    Conflict,
    IdempotencyMismatch,
    IllegalTransition,
    NotFound,
    StaleAttempt,
    StoreFull,
    StoreUnavailable,
    WorkerLost,
)
from tlm_core.jobs.nodes import DatasetInput
from tlm_core.jobs.spec import JobRecord, Progress
from tlm_core.jobs.states import TERMINAL, TRANSITIONS, State, Verb

T = "default"
ERROR = WorkerLost("a worker died")


@pytest.fixture
def store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client)


def test_a_full_redis_says_what_to_do_and_lets_jobs_be_deleted(store: JobStore, redis_client: redis.Redis) -> None:
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


def test_a_store_knows_of_files_once_there_was_a_data_set_or_a_job(store: JobStore, redis_client: redis.Redis) -> None:
    redis_client.set("tlm:{other}:webhooks", "no file")
    assert store.is_empty()
    redis_client.zadd("tlm:{other}:datasets", {"ds_1": 0})
    assert not store.is_empty()
    redis_client.delete("tlm:{other}:datasets")
    submit(store)
    assert not store.is_empty()


def test_a_full_redis_gives_out_no_job_and_loses_none(store: JobStore, redis_client: redis.Redis) -> None:
    job = submit(store)
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreFull):
            store.claim("a", 30)
    finally:
        redis_client.config_set("maxmemory", 0)
    assert (claim(store).id, store.get(T, job.id).attempt) == (job.id, 1)


def submit(store: JobStore, **kwargs: Any) -> JobRecord:
    return store.submit(T, make_spec(), make_resolved(), **kwargs)[0]


def claim(store: JobStore, owner: str = "a", lease: float = 30) -> JobRecord:
    job = store.claim(owner, lease)
    assert job is not None
    return job


def bring_to(store: JobStore, state: State) -> JobRecord:
    """A job in `state`, owned by 'a' where it is active."""
    submit(store)
    if state is State.QUEUED:
        return store.list_jobs(T)[0][0]
    job = claim(store)
    if state in (State.PAUSING, State.PAUSED):
        store.pause(T, job.id)
    if state in (State.CANCELLING, State.CANCELLED):
        store.cancel(T, job.id)
    match state:
        case State.PAUSED:
            store.confirm_paused(job, "a")
        case State.CANCELLED:
            store.confirm_cancelled(job, "a")
        case State.SUCCEEDED:
            store.finish(job, "a", {"ok": True})
        case State.FAILED:
            store.fail(job, "a", ERROR)
    return store.get(T, job.id)


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


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("verb", [v for v in TRANSITIONS if v is not Verb.CLAIM])
def test_a_verb_moves_a_job_exactly_as_the_table_says(store: JobStore, state: State, verb: Verb) -> None:
    job = bring_to(store, state)
    assert job.state is state
    target = TRANSITIONS[verb].moves.get(state)
    if target is not None:
        apply(store, verb, job)
        assert store.get(T, job.id).state is target
    elif verb is Verb.CANCEL and state in (State.CANCELLING, State.CANCELLED):
        apply(store, verb, job)
        assert store.get(T, job.id) == job
    else:
        with pytest.raises((IllegalTransition, StaleAttempt)):
            apply(store, verb, job)
        assert store.get(T, job.id) == job, "a refused verb leaves no trace"
    events = store.events(T, job.id)
    assert [e.seq for e in events] == list(range(1, store.get(T, job.id).last_event + 1))


@pytest.mark.parametrize("state", [State.QUEUED, State.PAUSED, State.RUNNING])
def test_a_job_tells_when_it_is_paused_and_cancelled_whether_or_not_anybody_runs_it(
    store: JobStore, state: State
) -> None:
    job = bring_to(store, state)
    if state is not State.PAUSED:
        store.pause(T, job.id)
    if state is State.RUNNING:
        store.confirm_paused(job, "a")
    store.cancel(T, job.id)
    types = [event.type for event in store.events(T, job.id)]
    assert types[-4:] == ["job.pause_requested", "job.paused", "job.cancel_requested", "job.cancelled"]


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_a_terminal_job_is_never_claimed(store: JobStore, state: State) -> None:
    bring_to(store, state)
    assert store.claim("b", 30) is None


def test_each_claim_from_the_queue_is_a_new_attempt_and_an_adoption_is_none(store: JobStore) -> None:
    submit(store)
    first = claim(store, "a", lease=1.0)
    assert (first.attempt, first.owner) == (1, "a")
    assert store.claim("b", 30) is None, "the lease still holds"
    time.sleep(1.05)
    adopted = claim(store, "b")
    assert (adopted.attempt, adopted.owner) == (1, "b")
    with pytest.raises(StaleAttempt):
        store.finish(first, "a", {})
    assert not store.renew(first, "a", 30)
    assert store.renew(adopted, "b", 30)
    store.requeue(adopted, "b", ERROR, 0)
    second = claim(store, "c")
    assert (second.attempt, second.failures) == (2, 1)


def test_a_requeued_job_waits_for_its_delay(store: JobStore) -> None:
    submit(store)
    store.requeue(claim(store), "a", ERROR, 0.15)
    assert store.claim("a", 30) is None
    time.sleep(0.2)
    assert claim(store).attempt == 2


def test_a_worker_of_an_old_attempt_can_write_nothing(store: JobStore) -> None:
    submit(store)
    zombie = claim(store)
    store.requeue(zombie, "a", ERROR, 0)
    now = claim(store)
    before = store.get(T, now.id)
    ref = ManifestRef(folder="x", digest="1" * 64)
    with pytest.raises(StaleAttempt):
        store.report(T, now.id, zombie.attempt, progress=Progress(stage="joint", node="joint.s0"))
    with pytest.raises(StaleAttempt):
        store.publish(T, now.id, zombie.attempt, artifact="art_1", ref=ref, node="n", stage="joint")
    with pytest.raises(StaleAttempt):
        store.publish_checkpoint(
            T, "art_1", CheckpointRef(ref=ref, step=1, node="n", job=now.id, attempt=zombie.attempt)
        )
    assert store.get(T, now.id) == before
    assert store.artifact(T, "art_1") is None
    assert store.checkpoints(T, "art_1") == []


def test_the_first_published_manifest_of_an_artifact_stays(store: JobStore) -> None:
    submit(store)
    job = claim(store)
    one, two = (ManifestRef(folder=name, digest=name * 64) for name in "12")
    assert store.publish(T, job.id, 1, artifact="art", ref=one, node="n", stage="s") == one
    assert store.publish(T, job.id, 1, artifact="art", ref=two, node="n", stage="s") == one
    assert [e.type for e in store.events(T, job.id)].count("artifact.published") == 1


def test_an_artifact_that_was_made_again_meanwhile_is_not_taken_back(store: JobStore) -> None:
    job = bring_to(store, State.RUNNING)
    old, new = (ManifestRef(folder=f"default/artifacts/art_1/{n}", digest=str(n) * 64) for n in (1, 2))
    store.publish(T, job.id, job.attempt, artifact="art_1", ref=new, node="prepare", stage="prepare")
    store.invalidate_artifact(T, "art_1", old)
    assert store.artifact(T, "art_1") == new
    store.invalidate_artifact(T, "art_1", new)
    assert store.artifact(T, "art_1") is None


def test_checkpoints_come_back_in_order_and_can_be_dropped(store: JobStore) -> None:
    submit(store)
    job = claim(store)
    made = [
        CheckpointRef(ref=ManifestRef(folder=f"c{n}", digest="1" * 64), step=n, node="n", job=job.id, attempt=1)
        for n in (1, 2, 3)
    ]
    for checkpoint in made:
        store.publish_checkpoint(T, "art", checkpoint)
    store.drop_checkpoint(T, "art", made[0])
    assert store.checkpoints(T, "art") == made[1:]
    assert store.artifacts_of(T, job.id) == {"art"}, "so that the rest of them can be deleted with the job"


def test_a_report_answers_with_the_state_so_that_a_worker_learns_to_stop(store: JobStore) -> None:
    submit(store)
    job = claim(store)
    progress = Progress(stage="joint", node="joint.s0", step=3, total=10)
    assert (
        store.report(T, job.id, 1, progress=progress, metrics=[{"step": 3, "loss": 1.5}], logs=["hello"]) == "running"
    )
    store.pause(T, job.id)
    assert store.report(T, job.id, 1, events=[("stage.note", {"text": "ü<>"})]) == "pausing"
    assert store.get(T, job.id).progress == progress
    assert store.metrics(T, job.id)[0]["loss"] == 1.5
    assert store.logs(T, job.id)[0]["line"] == "hello"
    assert store.events(T, job.id)[-1].data == {"text": "ü<>"}


def test_the_same_key_gives_the_same_job_and_another_body_is_refused(store: JobStore) -> None:
    results: list[tuple[JobRecord, bool]] = []

    def one() -> None:
        results.append(store.submit(T, make_spec(), make_resolved(), idempotency_key="k"))

    threads = [threading.Thread(target=one) for _ in range(20)]
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
    assert store.submit("other", make_spec(), make_resolved(), idempotency_key="k")[1], "keys belong to a tenant"


def test_two_coordinators_never_get_the_same_job(store: JobStore) -> None:
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


def test_lists_page_newest_first_and_by_state(store: JobStore) -> None:
    ids = sorted(submit(store).id for _ in range(5))
    store.cancel(T, ids[2])
    page, more = store.list_jobs(T, limit=2)
    assert ([j.id for j in page], more) == ([ids[4], ids[3]], True)
    page, more = store.list_jobs(T, limit=10, after=ids[3])
    assert ([j.id for j in page], more) == ([ids[2], ids[1], ids[0]], False)
    assert [j.id for j in store.list_jobs(T, state=State.CANCELLED)[0]] == [ids[2]]
    assert store.list_jobs("other")[0] == []


def test_another_tenants_job_is_not_there(store: JobStore) -> None:
    job = submit(store)
    for call in (store.get, store.cancel, store.pause, store.resume):
        with pytest.raises(NotFound):
            call("other", job.id)


def test_an_accepted_job_survives_a_killed_redis(tmp_path: Any) -> None:
    server = RedisServer(tmp_path)
    server.start()
    client = server.client()
    store = JobStore(client)
    job = submit(store, idempotency_key="k")
    server.kill()
    with pytest.raises(StoreUnavailable):
        store.get(T, job.id)
    server.start()
    try:
        assert store.get(T, job.id) == job
        assert submit(store, idempotency_key="k").id == job.id
    finally:
        client.close()
        server.kill()


def test_a_job_is_not_made_without_every_data_set_that_it_needs(store: JobStore, redis_client: redis.Redis) -> None:
    others = (DatasetInput(id="ds_2", ref=ManifestRef(folder="default/datasets/ds_2", digest="2" * 64), options={}),)
    resolved = make_resolved(others=others)
    needs = ["tlm:{default}:dataset:ds_1", "tlm:{default}:dataset:ds_2"]
    redis_client.set(needs[0], "{}")
    with pytest.raises(NotFound, match="ds_2"):
        store.submit(T, make_spec(), resolved, needs=needs, idempotency_key="k")
    redis_client.set(needs[1], "{}")
    job, new = store.submit(T, make_spec(), resolved, needs=needs, idempotency_key="k")
    assert new
    for dataset in ("ds_1", "ds_2"):
        with pytest.raises(Conflict, match=job.id):
            store.drop_dataset(T, dataset, "toy", Removal(T, dataset))
        assert [one.id for one in store.list_jobs(T, datasets=[dataset])[0]] == [job.id]
