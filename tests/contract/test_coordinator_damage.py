"""The coordinator while artifacts are lost, damaged, or published twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import redis

from services.common.retriever_client import SelectionRun
from services.common.situation import Situation
from tests.contract.coordinator_harness import CoordinatorHarness, T
from tests.support import files_under
from tests.trainer_fakes import FakeSelections, counting_stage
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import CorruptArtifact, NotFound
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State


def test_copy_of_an_artifact_that_another_job_published_is_deleted(harness: CoordinatorHarness) -> None:
    jobs, coordinator = [harness.submit(), harness.submit()], harness.coordinator(concurrency=2)
    coordinator.round()
    assert harness.validated == 2, "it computes the task of each job, which is the same artifact"
    coordinator.round()
    (folder,) = {Situation.read(harness.store, harness.job(job)).done["validate"].folder for job in jobs}
    copies = {path.parent for path in files_under(harness.folder / "storage") if path.name == "made.json"}
    assert copies == {Path(harness.artifacts.path(folder))}


def test_recomputed_artifact_does_not_count_as_progress(harness: CoordinatorHarness, redis_client: redis.Redis) -> None:
    job_id = harness.submit()
    harness.store.claim("a", 30)
    ref = ManifestRef(folder="x", digest="1" * 64)
    for losses in (None, "2"):
        redis_client.hset(f"tlm:{{{T}}}:job:{job_id}", mapping={"losses": 2, "hub_losses": 2})
        harness.store.publish(T, job_id, 1, artifact="art", ref=ref, node="n", stage="s")
        assert redis_client.hmget(f"tlm:{{{T}}}:job:{job_id}", "losses", "hub_losses") == [losses, losses]
        harness.store.invalidate_artifact(T, "art", ref)


def use_remote_storage(harness: CoordinatorHarness) -> None:
    """Use a storage in which only a complete read detects damage."""
    harness.artifacts = ArtifactStore(f"memory://{harness.folder.name}", harness.folder / "cache")
    harness.selections = FakeSelections(harness.artifacts, harness.folder)


def damage_task(harness: CoordinatorHarness, job_id: str, body: bytes | None = None) -> None:
    """Overwrite the file of the validated task, by default with as many bytes."""
    task = harness.artifacts.path(
        Situation.read(harness.store, harness.job(job_id)).done["validate"].folder, "made.json"
    )
    size = harness.artifacts.fs.size(task)
    harness.artifacts.fs.pipe_file(task, b"x" * size if body is None else body)


@pytest.mark.parametrize("remote", [False, True])
def test_input_damaged_after_its_check_is_computed_again(harness: CoordinatorHarness, remote: bool) -> None:
    if remote:
        use_remote_storage(harness)
    coordinator, job_id = harness.coordinator(), harness.submit()
    # Of a remote artifact, later stages read the copy that the first one made.
    first = harness.until_submitted(coordinator, job_id, "baseline" if remote else "main")
    damage_task(harness, job_id, None if remote else b"")
    harness.work(first)
    for _ in range(3):
        coordinator.round()
    assert (harness.job(job_id).state, harness.job(job_id).losses) == (State.QUEUED, 1)
    harness.store.expire_deadlines()
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (harness.job(job_id).state, harness.validated) == (State.SUCCEEDED, 2)


def test_artifact_unpublished_between_two_stages_interrupts_the_attempt(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit(max_attempts=1)
    submission = harness.until_submitted(coordinator, job_id)
    situation = Situation.read(harness.store, harness.job(job_id))
    task = situation.artifact_id(situation.plan.node("validate"))
    harness.work(submission, joint=counting_stage(1, lambda _: harness.store.invalidate_artifact(T, task)))
    for _ in range(4):
        coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures, job.losses) == (State.QUEUED, 0, 1), job.error
    assert job.error is not None and "the artifact of 'validate' is no longer published" in str(job.error["message"])
    harness.store.expire_deadlines()
    assert harness.until_ended(coordinator, job_id).state is State.SUCCEEDED
    assert harness.validated == 2


def test_task_that_the_retriever_reports_as_damaged_is_computed_again(harness: CoordinatorHarness) -> None:
    use_remote_storage(harness)

    def retriever(job: JobRecord) -> SelectionRun | None:
        if harness.validated > 1:
            return None
        damage_task(harness, job.id)
        return SelectionRun(state="failed", error=CorruptArtifact("made.json does not match its manifest").as_dict())

    harness.selections.answer = retriever
    coordinator, job_id = harness.coordinator(), harness.submit()
    for _ in range(3):
        coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.losses, job.error and job.error["code"]) == (State.QUEUED, 1, "storage_unavailable")
    assert harness.selections.stopped, "a stopped selection forgets its failure"
    harness.store.expire_deadlines()
    harness.work(harness.until_submitted(coordinator, job_id))
    coordinator.round()
    assert (harness.job(job_id).state, harness.validated) == (State.SUCCEEDED, 2)


def test_task_that_is_lost_during_the_selection_is_computed_again(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.selections.answer = lambda _: SelectionRun(state="running", done=1, total=2)
    harness.until_submitted(coordinator, job_id, "baseline")
    task = Situation.read(harness.store, harness.job(job_id)).done["validate"]
    shutil.rmtree(harness.artifacts.path(task.folder))
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures, job.losses) == (State.QUEUED, 0, 1), job.error
    harness.selections.answer = lambda _: None
    harness.store.expire_deadlines()
    assert harness.until_ended(coordinator, job_id).state is State.SUCCEEDED


def test_report_that_is_lost_before_the_end_is_computed_again(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()
    harness.work(harness.until_submitted(coordinator, job_id))
    situation = Situation.read(harness.store, harness.job(job_id))
    report, check = situation.done[situation.plan.report], harness.artifacts.check

    def lose_after_check(ref: ManifestRef) -> None:
        check(ref)
        if ref == report:
            shutil.rmtree(harness.artifacts.path(ref.folder))

    harness.artifacts.check = lose_after_check  # type: ignore[method-assign]
    coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.failures, job.losses) == (State.QUEUED, 0, 1), job.error
    harness.store.expire_deadlines()
    assert harness.until_ended(coordinator, job_id).state is State.SUCCEEDED


def test_retriever_error_without_a_damaged_input_fails_the_job(harness: CoordinatorHarness) -> None:
    harness.selections.answer = lambda _: SelectionRun(state="failed", error=NotFound("the corpus is gone").as_dict())
    coordinator, job_id = harness.coordinator(), harness.submit()
    for _ in range(4):
        coordinator.round()
    job = harness.job(job_id)
    assert (job.state, job.error and job.error["code"], harness.validated) == (State.FAILED, "not_found", 1)


def test_damaged_checkpoint_is_skipped_for_the_previous_one(harness: CoordinatorHarness) -> None:
    coordinator, job_id = harness.coordinator(), harness.submit()

    def die_at_four(step: int) -> None:
        if step == 4:
            raise RuntimeError("killed")

    harness.work(harness.until_submitted(coordinator, job_id), joint=counting_stage(5, die_at_four))
    job = harness.job(job_id)
    done = {name: ref.digest for name, ref in Situation.read(harness.store, job).done.items()}
    artifact = plan_of(job).node("joint.s0").artifact_id(done, job.id)
    newest = harness.store.checkpoints(T, artifact)[-1]
    Path(harness.artifacts.path(newest.ref.folder, "step")).write_text("9")
    coordinator.round()
    harness.store.expire_deadlines()
    harness.work(harness.until_submitted(coordinator, job_id), joint=counting_stage(5))
    starts = [e.data["step"] for e in harness.store.events(T, job_id) if e.type == "stage.started_at"]
    assert starts == [0, newest.step - 1]
