"""What workers write to the job store: reports, checkpoints and artifacts of the current attempt."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from services.common.jobstore import CheckpointRef, JobStore
from services.common.redis_client import key
from services.trainer.patience import report_error
from tests.contract.coordinator_harness import ERROR, MovableClockStore, T, bring_to, claim, submit
from tlm_core.artifacts import ManifestRef, canonical_json
from tlm_core.errors import IllegalTransition, StaleAttempt, WorkerLost
from tlm_core.jobs.spec import Beat, Progress
from tlm_core.jobs.states import State


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


def test_artifact_that_an_earlier_release_published_is_read_and_invalidated(
    store: JobStore, redis_client: redis.Redis
) -> None:
    submit(store)
    job, ref = claim(store), ManifestRef(folder=f"{T}/artifacts/art/job_1-1", digest="a" * 64)
    redis_client.hset(key(T, "artifacts"), "art", canonical_json(ref.model_dump()))
    assert store.publish(T, job.id, 1, artifact="art", ref=ref, node="n", stage="s") == ref
    store.invalidate_artifact(T, "art", ref.model_copy(update={"digest": "b" * 64}), by=job)
    assert store.artifact(T, "art") == ref
    store.invalidate_artifact(T, "art", ref, by=job)
    assert store.artifact(T, "art") is None
