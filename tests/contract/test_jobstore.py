"""The job store on a real Redis: transitions, events without gaps, and fencing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from services.common import job_reads
from services.common.jobstore import CheckpointRef, JobStore, Removal
from services.trainer.patience import report_error
from tests.contract.coordinator_harness import MovableClockStore
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
    UnreadableRecord,
    WorkerLost,
)
from tlm_core.jobs.spec import Beat, DatasetInput, JobRecord, Progress
from tlm_core.jobs.states import TERMINAL, TRANSITIONS, State, Verb

T = "default"
ERROR = WorkerLost("A worker died.")


@pytest.fixture
def store(redis_client: redis.Redis) -> MovableClockStore:
    return MovableClockStore(redis_client)


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


def submit(store: JobStore, **kwargs: Any) -> JobRecord:
    return store.submit(T, make_spec(), make_resolved(), **kwargs)[0]


def claim(store: JobStore, owner: str = "a", lease: float = 30) -> JobRecord:
    job = store.claim(owner, lease)
    assert job is not None
    return job


def bring_to(store: JobStore, state: State) -> JobRecord:
    """Return a job in `state`, owned by 'a' if it is active."""
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


def test_damaged_record_does_not_hide_other_jobs(store: JobStore, redis_client: redis.Redis) -> None:
    damaged, other, replaced = (submit(store).id for _ in range(3))
    first = claim(store)
    redis_client.hset(f"tlm:{{{T}}}:job:{damaged}", "submissions", "[")
    redis_client.delete(f"tlm:{{{T}}}:job:{replaced}")
    redis_client.set(f"tlm:{{{T}}}:job:{replaced}", "no hash")
    with pytest.raises(UnreadableRecord, match="Redis rejects a command"):
        store.report(T, first.id, 1, submissions={"main": "x"})
    with pytest.raises(UnreadableRecord, match=damaged):
        store.get(T, damaged)
    listed = {job.id: job for job in store.list_jobs(T)[0]}
    assert [listed[job].unreadable for job in (damaged, other, replaced)] == [True, False, True]
    assert listed[damaged].state is State.RUNNING
    assert listed[damaged].error is not None and listed[damaged].error["code"] == "unreadable_record"
    assert {job.id for job in store.jobs_on_data(T, "0" * 64)} == set(listed)
    assert (claim(store).id, store.claim("a", 30)) == (other, None)


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


def test_dataset_is_dropped_without_a_look_at_finished_jobs(store: JobStore, redis_client: redis.Redis) -> None:
    finished = bring_to(store, State.SUCCEEDED)
    redis_client.delete(f"tlm:{{{T}}}:job:{finished.id}")
    redis_client.set(f"tlm:{{{T}}}:job:{finished.id}", "a look would fail")
    store.drop_dataset(T, "ds_1", "toy", Removal(T, "ds_1"))
    assert list(store.removals()) == [Removal(T, "ds_1").member]


def test_dataset_stays_if_a_job_is_submitted_during_its_deletion(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_to(store, State.SUCCEEDED)
    search, late = store._unfinished, list[str]()

    def submit_after(tenant: str, place: str) -> tuple[str, str] | None:
        answer = search(tenant, place)
        if not late:
            late.append(submit(store).id)
        return answer

    monkeypatch.setattr(store, "_unfinished", submit_after)
    with pytest.raises(Conflict) as refused:
        store.drop_dataset(T, "ds_1", "toy", Removal(T, "ds_1"))
    assert refused.value.facts["job"] == late[0]
    assert store.removals() == {}


def test_many_jobs_on_a_dataset_are_read_in_pages(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_reads, "_PAGE", 2)
    finished = [bring_to(store, State.SUCCEEDED).id for _ in range(4)]
    queued, sizes, read = submit(store), list[int](), store._records

    def counted(tenant: str, ids: Sequence[str]) -> list[JobRecord]:
        sizes.append(len(ids))
        return read(tenant, ids)

    monkeypatch.setattr(store, "_records", counted)
    assert [job.id for job in store.jobs_on_data(T, queued.resolved.dataset.digest)] == sorted([*finished, queued.id])
    assert sizes == [2, 2, 1]
    with pytest.raises(Conflict, match=queued.id):
        store.drop_dataset(T, "ds_1", "toy", Removal(T, "ds_1"))
    store.cancel(T, queued.id)
    store.drop_dataset(T, "ds_1", "toy", Removal(T, "ds_1"))


def test_worker_of_an_old_attempt_cannot_write(store: JobStore) -> None:
    submit(store)
    ended = claim(store)
    store.requeue(ended, "a", ERROR, 0)
    current = claim(store)
    before = store.get(T, current.id)
    ref = ManifestRef(folder="x", digest="1" * 64)
    with pytest.raises(StaleAttempt):
        store.report(T, current.id, ended.attempt, progress=Progress(stage="joint", node="joint.s0"))
    with pytest.raises(StaleAttempt):
        store.publish(T, current.id, ended.attempt, artifact="art_1", ref=ref, node="n", stage="joint")
    with pytest.raises(StaleAttempt):
        store.publish_checkpoint(
            T, "art_1", CheckpointRef(ref=ref, step=1, node="n", job=current.id, attempt=ended.attempt)
        )
    assert store.get(T, current.id) == before
    assert store.artifact(T, "art_1") is None
    assert store.checkpoints(T, "art_1") == []


def test_ended_attempt_unpublishes_nothing(store: JobStore) -> None:
    submit(store)
    ended = claim(store)
    ref = ManifestRef(folder="x", digest="1" * 64)
    checkpoint = CheckpointRef(ref=ref, step=1, node="n", job=ended.id, attempt=1)
    store.publish(T, ended.id, 1, artifact="art", ref=ref, node="n", stage="s")
    store.publish_checkpoint(T, "art", checkpoint)
    store.requeue(ended, "a", ERROR, 0)
    with pytest.raises(IllegalTransition):
        store.drop_checkpoint(T, "art", checkpoint, by=ended)
    current = claim(store)
    with pytest.raises(StaleAttempt):
        store.drop_checkpoint(T, "art", checkpoint, by=ended)
    with pytest.raises(StaleAttempt):
        store.invalidate_artifact(T, "art", ref, by=ended)
    assert (store.checkpoints(T, "art"), store.artifact(T, "art")) == ([checkpoint], ref)
    store.drop_checkpoint(T, "art", checkpoint, by=current)
    store.invalidate_artifact(T, "art", ref, by=current)
    assert (store.checkpoints(T, "art"), store.artifact(T, "art")) == ([], None)


def test_artifact_unpublished_during_its_publication_is_no_error(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(store)
    job, ref, report = claim(store), ManifestRef(folder="x", digest="1" * 64), store.report

    def unpublished_meanwhile(*args: Any, **kwargs: Any) -> State:
        state = report(*args, **kwargs)
        store.invalidate_artifact(T, "art")
        return state

    monkeypatch.setattr(store, "report", unpublished_meanwhile)
    assert store.publish(T, job.id, 1, artifact="art", ref=ref, node="n", stage="s") == ref
    assert store.artifact(T, "art") is None


def test_first_published_manifest_of_an_artifact_stays(store: JobStore) -> None:
    submit(store)
    job = claim(store)
    first, second = (ManifestRef(folder=name, digest=name * 64) for name in "12")
    assert store.publish(T, job.id, 1, artifact="art", ref=first, node="n", stage="s") == first
    assert store.publish(T, job.id, 1, artifact="art", ref=second, node="n", stage="s") == first
    assert [e.type for e in store.events(T, job.id)].count("artifact.published") == 1


def test_invalidation_spares_a_newer_artifact(store: JobStore) -> None:
    job = bring_to(store, State.RUNNING)
    old, new = (ManifestRef(folder=f"default/artifacts/art_1/{n}", digest=str(n) * 64) for n in (1, 2))
    store.publish(T, job.id, job.attempt, artifact="art_1", ref=new, node="prepare", stage="prepare")
    store.invalidate_artifact(T, "art_1", old)
    assert store.artifact(T, "art_1") == new
    store.invalidate_artifact(T, "art_1", new)
    assert store.artifact(T, "art_1") is None


def test_checkpoints_are_ordered_by_step_and_can_be_dropped(store: JobStore) -> None:
    submit(store)
    job = claim(store)
    checkpoints = [
        CheckpointRef(ref=ManifestRef(folder=f"c{n}", digest="1" * 64), step=n, node="n", job=job.id, attempt=1)
        for n in (1, 2, 3)
    ]
    for checkpoint in checkpoints:
        store.publish_checkpoint(T, "art", checkpoint)
    store.drop_checkpoint(T, "art", checkpoints[0])
    assert store.checkpoints(T, "art") == checkpoints[1:]
    assert store.artifacts_of(T, job.id) == {"art"}, "the other checkpoints are deleted with the job"


def test_share_never_falls_within_an_attempt(store: JobStore) -> None:
    job = bring_to(store, State.RUNNING)
    # Groups of workers report in turn, as recorded: from `refit` of a seed to `evaluate` of the next group.
    recorded = [
        ("select", 0.1),
        ("baseline", 0.05),
        ("joint", 0.6),
        ("refit", 0.94),
        ("evaluate", 0.77),
        ("export", 0.97),
    ]
    shares = []
    for stage, share in recorded:
        progress = Progress(stage=stage, node=stage, step=3, share=share, stage_eta_seconds=0.1)
        store.report(T, job.id, job.attempt, progress=progress)
        stored = store.get(T, job.id).progress
        assert stored is not None and stored == progress.model_copy(update={"share": stored.share})
        shares.append(stored.share)
    assert shares == [0.1, 0.1, 0.6, 0.94, 0.94, 0.97]


def test_next_attempt_may_begin_at_a_lower_share(store: MovableClockStore) -> None:
    job = bring_to(store, State.RUNNING)
    store.report(T, job.id, job.attempt, progress=Progress(stage="joint", node="joint.s0", share=0.6))
    store.requeue(job, "a", ERROR, 0.0)
    again = store.claim("a", 60)
    assert again is not None and again.progress is not None and again.progress.share == 0.6
    store.report(T, job.id, again.attempt, progress=Progress(stage="joint", node="joint.s0", share=0.4))
    after = store.get(T, job.id).progress
    assert after is not None and after.share == 0.4


def test_report_returns_the_state_of_the_job(store: JobStore) -> None:
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


def test_repeated_report_adds_its_entries_once(store: JobStore) -> None:
    submit(store)
    job = claim(store)
    for report_id in ("", "", "1", "1", "2", ""):  # Older workers send no id.
        beat = ("main", Beat(idle=1.0, report=report_id))
        store.report(T, job.id, 1, events=[("note", {})], metrics=[{"step": 1}], logs=["line"], beat=beat)
    store.report(T, job.id, 1, events=[("note", {})], beat=("other", Beat(report="2")))
    assert [event.type for event in store.events(T, job.id)].count("note") == 6
    assert (len(store.metrics(T, job.id)), len(store.logs(T, job.id))) == (5, 5)


def test_repeated_checkpoint_or_error_adds_one_event(store: JobStore) -> None:
    submit(store)
    job = claim(store)
    ref = ManifestRef(folder="f", digest="1" * 64)
    for step in (1, 1, 2):
        checkpoint = CheckpointRef(ref=ref, step=step, node="joint.s0", job=job.id, attempt=1)
        store.publish_checkpoint(T, "art_1", checkpoint)
    for message in ("first", "first", "second"):
        report_error(store, T, job.id, 1, WorkerLost(message))
    assert [checkpoint.step for checkpoint in store.checkpoints(T, "art_1")] == [1, 2]
    types = [event.type for event in store.events(T, job.id)]
    assert (types.count("checkpoint.published"), types.count("attempt.error")) == (2, 2)


def test_repeated_wait_or_submission_adds_one_event(store: JobStore) -> None:
    submit(store)
    job = claim(store)
    submitted, first, second = ("workers.submitted", {"group": "main"}), ("job.waiting", {}), ("job.waiting", {"n": 2})
    for event in (submitted, submitted, first, first, second, second, ("note", {}), second):
        store.report(T, job.id, 1, events=[event])
    types = [event.type for event in store.events(T, job.id)]
    assert (types.count("workers.submitted"), types.count("job.waiting")) == (1, 3), types


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


def test_job_lists_are_paged_newest_first_and_filtered_by_state(store: JobStore) -> None:
    ids = sorted(submit(store).id for _ in range(5))
    store.cancel(T, ids[2])
    page, more = store.list_jobs(T, limit=2)
    assert ([j.id for j in page], more) == ([ids[4], ids[3]], True)
    page, more = store.list_jobs(T, limit=10, after=ids[3])
    assert ([j.id for j in page], more) == ([ids[2], ids[1], ids[0]], False)
    assert [j.id for j in store.list_jobs(T, state=State.CANCELLED)[0]] == [ids[2]]
    assert store.list_jobs("other")[0] == []


def test_filtered_list_walks_no_whole_set(store: JobStore, redis_client: redis.Redis) -> None:
    ids = sorted(submit(store).id for _ in range(6))
    for job_id in ids[:3]:
        store.cancel(T, job_id)
    redis_client.config_resetstat()
    filters: dict[str, Any] = {"state": State.CANCELLED, "kind": "train", "datasets": ["ds_0", "ds_1"]}
    page, more = store.list_jobs(T, limit=2, **filters)
    assert ([job.id for job in page], more) == ([ids[2], ids[1]], True)
    page, more = store.list_jobs(T, limit=2, after=ids[1], **filters)
    assert ([job.id for job in page], more) == ([ids[0]], False)
    assert store.list_jobs(T, state=State.CANCELLED, kind="prune")[0] == []
    assert [job.id for job in store.list_jobs(T, search=ids[0])[0]] == [ids[0]]
    used = redis_client.info("commandstats").keys()
    assert not {"cmdstat_zinter", "cmdstat_zunion"} & used


def test_search_reads_no_more_names_than_it_needs(
    store: JobStore, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.common.job_reads._PAGE", 2)
    ids = [store.submit(T, make_spec(name=f"Run {number}"), make_resolved())[0].id for number in range(6)]
    redis_client.config_resetstat()
    page, more = store.list_jobs(T, search="rUN", limit=1)
    assert ([job.id for job in page], more) == ([max(ids)], True)
    used = redis_client.info("commandstats")
    assert used["cmdstat_hmget"]["calls"] == 1 and "cmdstat_hscan" not in used
    assert [job.id for job in store.list_jobs(T, search="run 0")[0]] == [ids[0]]


def test_job_of_another_tenant_is_not_found(store: JobStore) -> None:
    job = submit(store)
    for call in (store.get, store.cancel, store.pause, store.resume):
        with pytest.raises(NotFound):
            call("other", job.id)


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


def test_job_needs_every_dataset_record_to_exist(store: JobStore, redis_client: redis.Redis) -> None:
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
        assert [listed.id for listed in store.list_jobs(T, datasets=[dataset])[0]] == [job.id]
