"""Jobs with several groups, on a real job store and with the real local stages."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from services.common.situation import Situation
from services.trainer.cluster import Status
from services.trainer.coordinator import Coordinator
from services.trainer.local_stages import LocalThreads
from services.trainer.settings import TrainerSettings
from services.trainer.worker import run_local
from tests.contract.coordinator_harness import InlineExecutor, MovableClockStore
from tests.factories import make_resolved, make_spec
from tests.trainer_fakes import FakeCluster, FakeSelections, all_stages, run_group
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import ClusterUnavailable
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import DatasetInput, JobRecord, ReusedArtifact
from tlm_core.jobs.states import State
from tlm_core.training.recipe import resolve
from tlm_core.training.stage import DROPPED

T = "default"
CURVE: dict[str, Any] = {"sizes": [2, 30], "models": ["bilstm", "tlm"]}


class StudyHarness:
    """A store, a storage with datasets, and a coordinator with real local stages and fake workers and retriever."""

    def __init__(self, store: MovableClockStore, folder: Path) -> None:
        self.store, self.folder, self.cluster = store, folder, FakeCluster()
        self.use_storage(ArtifactStore(str(folder / "storage"), folder / "cache"))

    def use_storage(self, artifacts: ArtifactStore) -> None:
        self.artifacts, scratch = artifacts, self.folder / "scratch"
        self.selections = FakeSelections(artifacts, self.folder)
        settings = TrainerSettings(storage=artifacts.root, scratch=scratch, lease_seconds=30.0)
        self.coordinator = Coordinator(
            self.store, artifacts, self.selections, self.cluster, settings, owner="a",
            local=LocalThreads(functools.partial(run_local, artifacts, scratch), InlineExecutor),
        )  # fmt: skip

    def dataset(self, name: str, labels: str) -> ManifestRef:
        work = self.folder / f"upload-{name}"
        work.mkdir()
        for split, rows in (("train", 30), ("validation", 6), ("test", 6)):
            lines = [{"text": f"{name} {split} text number {n}", "label": labels[n % len(labels)]} for n in range(rows)]
            (work / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return self.artifacts.write(f"{T}/datasets/{name}", work, artifact=name, stage="dataset")

    def submit(self, *, others: tuple[DatasetInput, ...] = (), labels: str = "abc", **spec: Any) -> str:
        resolved = make_resolved(dataset=self.dataset("first", labels), others=others)
        return self.store.submit(T, make_spec(**spec), resolved)[0].id

    def drive(self, job_id: str, rounds: int = 12) -> JobRecord:
        for _ in range(rounds):
            self.coordinator.round()
        return self.store.get(T, job_id)

    def drive_to_main(self, job_id: str) -> str:
        """Fit the linear model. Return the submission of the main group."""
        if "baseline" in (submissions := self.drive(job_id).submissions):
            self.work(submissions["baseline"])
        return self.drive(job_id).submissions["main"]

    def work(self, submission: str) -> None:
        run_group(
            self.store, self.artifacts, self.folder / "scratch", self.cluster.assignment(submission), all_stages()
        )
        self.cluster.statuses[submission] = Status.ENDED


@pytest.fixture
def harness(redis_client: redis.Redis, tmp_path: Path) -> StudyHarness:
    return StudyHarness(MovableClockStore(redis_client), tmp_path)


def test_nodes_behind_a_dropped_subset_are_dropped(harness: StudyHarness) -> None:
    job_id = harness.submit(kind="learning_curve", options=CURVE)
    harness.work(harness.drive_to_main(job_id))
    job = harness.drive(job_id)
    assert job.state is State.SUCCEEDED
    metas = {
        name: harness.artifacts.manifest(ref).meta for name, ref in Situation.read(harness.store, job).done.items()
    }
    dropped = {name for name, meta in metas.items() if DROPPED in meta}
    assert dropped == {node.name for node in plan_of(job).nodes if ".n2." in node.name}
    assert "2 texts include none with the label" in metas["evaluate.bilstm.n2.s0"][DROPPED]
    assert harness.selections.requests == 2, "only the other size needs a selection"
    assert metas["curve"] == {"inputs": len(plan_of(job).final.inputs)}


def test_workers_wait_for_every_selection(harness: StudyHarness) -> None:
    job_id = harness.submit(kind="learning_curve", options=CURVE | {"sizes": [15, 30]})
    for _ in range(30):
        job = harness.drive(job_id, rounds=1)
        done = Situation.read(harness.store, job).done
        assert ("main" in job.submissions) <= ({"select.n15.s0", "select.n30.s0"} <= done.keys())
        if harness.cluster.statuses.get(baseline := job.submissions.get("baseline", "")) is Status.RUNNING:
            harness.work(baseline)
    assert "main" in job.submissions


@pytest.mark.parametrize(
    ("sizes", "complaint"), [([10, 31], "The size 31 exceeds the"), ([2, 3], "No size includes texts of all labels")]
)
def test_impossible_sizes_fail_the_job_before_training(harness: StudyHarness, sizes: list[int], complaint: str) -> None:
    job_id = harness.submit(kind="learning_curve", options=CURVE | {"sizes": sizes}, labels="abcdefgh")
    job = harness.drive(job_id)
    assert job.state is State.FAILED and job.error is not None
    assert complaint in job.error["message"]
    assert harness.cluster.commands == {}


def test_task_damaged_before_a_local_stage_is_computed_again(harness: StudyHarness) -> None:
    harness.use_storage(ArtifactStore(f"memory://{harness.folder.name}", harness.folder / "cache"))
    job_id = harness.submit(kind="learning_curve", options=CURVE)
    while "validate" not in (done := Situation.read(harness.store, harness.store.get(T, job_id)).done):
        harness.coordinator.round()
    path = harness.artifacts.path(done["validate"].folder, "train.parquet")
    harness.artifacts.fs.pipe_file(path, b"x" * harness.artifacts.fs.size(path))
    job = harness.drive(job_id, rounds=3)
    assert (job.state, job.losses, job.error and job.error["code"]) == (State.QUEUED, 1, "storage_unavailable")
    harness.store.expire_deadlines()
    harness.drive(job_id)
    assert "sizes" in Situation.read(harness.store, harness.store.get(T, job_id)).done


def test_second_pruning_computes_only_new_tickets(harness: StudyHarness) -> None:
    first = harness.submit(kind="prune", options={"levels": [0.3]})
    harness.work(harness.drive_to_main(first))
    assert harness.drive(first).state is State.SUCCEEDED
    resolved = harness.store.get(T, first).resolved
    spec = make_spec(kind="prune", options={"levels": [0.3, 0.5]})
    second = harness.store.submit(T, spec, resolved)[0].id
    harness.coordinator.round()
    job = harness.store.get(T, second)
    missing = {node.name for node in plan_of(job).nodes} - Situation.read(harness.store, job).done.keys()
    assert missing == {f"ticket.{which}.l0.5.s0" for which in ("winning", "random", "losing")} | {"phases"}


def test_lost_check_is_computed_again_beside_an_existing_report(harness: StudyHarness) -> None:
    changes = {"model.init": "hub:a/b", "tokenizer.source": "hub:a/b", "joint.enabled": False}
    resolved = make_resolved(dataset=harness.dataset("first", "abc"), recipe=resolve("fast", "tiny", changes))
    spec = make_spec(kind="prune", options={"levels": [0.3]})
    job_id = harness.store.submit(T, spec, resolved)[0].id
    harness.work(harness.drive_to_main(job_id))
    job = harness.store.get(T, job_id)
    done = {name: ref.digest for name, ref in Situation.read(harness.store, job).done.items()}
    harness.store.invalidate_artifact(T, plan_of(job).node("check_encoder").artifact_id(done, job_id))
    assert harness.drive(job_id, rounds=1).state is State.QUEUED
    harness.store.expire_deadlines()
    harness.work(harness.drive_to_main(job_id))
    assert harness.drive(job_id).state is State.SUCCEEDED


def pruning_of(harness: StudyHarness) -> str:
    """Return a job that prunes the model of another job, whose artifacts no other job can compute."""
    first = harness.submit(seeds=(0,))
    harness.work(harness.drive_to_main(first))
    trained = harness.drive(first)
    assert trained.state is State.SUCCEEDED and trained.result is not None
    artifacts = {
        name: ReusedArtifact(artifact=f"own-{name}", ref=entry.ref) for name, entry in trained.result.artifacts.items()
    }
    for name in ("refit.s0", "refit_linear", "evaluate", "export"):
        del artifacts[name]
    resolved = trained.resolved.model_copy(update={"reused": artifacts})
    return harness.store.submit(T, make_spec(kind="prune", options={"job": first, "levels": [0.3]}), resolved)[0].id


def test_pruning_reuses_the_artifacts_of_the_pruned_job(harness: StudyHarness) -> None:
    job_id = pruning_of(harness)
    selections = harness.selections.requests
    harness.work(harness.drive_to_main(job_id))
    job = harness.drive(job_id)
    assert job.state is State.SUCCEEDED and job.result is not None
    ran = {e.data["node"] for e in harness.store.events(T, job_id) if e.type == "artifact.published"}
    tickets = {f"ticket.{which}.l0.3.s0" for which in ("winning", "random", "losing")}
    assert ran == {"importance.s0", "evaluate", "phases"} | tickets
    assert harness.selections.requests == selections
    for name, reused in job.resolved.reused.items():
        assert job.result.artifacts[name] == reused


def test_lost_model_of_a_pruned_job_fails_the_pruning(harness: StudyHarness) -> None:
    job_id = pruning_of(harness)
    reused = harness.store.get(T, job_id).resolved.reused
    harness.artifacts.delete(reused["joint.s0"].ref.folder)
    commands = len(harness.cluster.commands)
    job = harness.drive(job_id)
    assert job.state is State.FAILED and job.error is not None
    assert "artifact of 'joint.s0' from job" in job.error["message"] and len(harness.cluster.commands) == commands


def test_group_waiting_for_room_is_not_stopped_when_another_group_reports(harness: StudyHarness) -> None:
    job_id = harness.submit(kind="prune", options={"levels": [0.3]}, seeds=(0, 1))
    harness.work(harness.drive_to_main(job_id))
    first, second = sorted(harness.drive(job_id).submissions.keys() - {"baseline", "main"})
    harness.work(harness.store.get(T, job_id).submissions[first])  # reports and ends
    harness.cluster.statuses[harness.store.get(T, job_id).submissions[second]] = Status.WAITING
    for harness.store.ahead in range(0, 3600, 100):
        harness.drive(job_id, rounds=1)
    job = harness.drive(job_id)
    assert (job.attempt, job.failures) == (1, 0)
    harness.work(job.submissions[second])
    gathering = harness.drive(job_id).submissions.keys() - {"baseline", "main", first, second}
    harness.work(harness.store.get(T, job_id).submissions[gathering.pop()])
    assert harness.drive(job_id).state is State.SUCCEEDED


def side_by_side(harness: StudyHarness) -> tuple[str, set[str]]:
    """Return a pruning job whose seeds the next round submits, and the names of their groups."""
    job_id = harness.submit(kind="prune", options={"levels": [0.3]}, seeds=(0, 1, 2))
    harness.work(harness.drive_to_main(job_id))
    return job_id, {f"seed.s{seed}" for seed in (0, 1, 2)}


def test_groups_of_one_round_are_each_submitted_once(harness: StudyHarness) -> None:
    job_id, groups = side_by_side(harness)
    assert harness.drive(job_id, rounds=1).submissions.keys() == {"baseline", "main"} | groups
    harness.drive(job_id, rounds=3)
    groups_submitted = [e.data["group"] for e in harness.store.events(T, job_id) if e.type == "workers.submitted"]
    assert sorted(groups_submitted) == ["baseline", "main", *sorted(groups)]


def test_rejected_group_is_withdrawn_alone(harness: StudyHarness) -> None:
    job_id, groups = side_by_side(harness)
    submit, refused = harness.cluster.submit, f"{job_id}.seed.s1.1"

    def refusing(submission: str, command: Sequence[str], **needs: float) -> None:
        if submission == refused:
            raise ClusterUnavailable("not ready to take jobs")
        submit(submission, command, **needs)

    harness.cluster.submit = refusing  # type: ignore[method-assign]
    assert harness.drive(job_id, rounds=1).submissions.keys() == {"baseline", "main", "seed.s0"}
    harness.cluster.submit = submit  # type: ignore[method-assign]
    assert harness.drive(job_id, rounds=1).submissions.keys() == {"baseline", "main"} | groups


def test_cancelled_job_ends_when_all_its_groups_have_stopped(harness: StudyHarness) -> None:
    job_id, _ = side_by_side(harness)
    harness.drive(job_id, rounds=1)
    harness.store.cancel(T, job_id)
    assert harness.drive(job_id, rounds=2).state is State.CANCELLED
    assert Status.RUNNING not in harness.cluster.statuses.values()


def test_sharing_datasets_are_validated_and_merged(harness: StudyHarness) -> None:
    other = DatasetInput(id="ds_2", ref=harness.dataset("second", "xy"))
    job_id = harness.submit(kind="share_tickets", options={"others": ["second"]}, others=(other,))
    harness.work(harness.drive_to_main(job_id))
    job = harness.drive(job_id)
    assert job.state is State.SUCCEEDED
    merged = harness.artifacts.localize(Situation.read(harness.store, job).done["merge"])
    assert json.loads((merged / "task.json").read_text())["labels"] == [
        "toy: a", "toy: b", "toy: c", "second: x", "second: y",
    ]  # fmt: skip


def test_clashing_labels_fail_the_job_before_training(harness: StudyHarness) -> None:
    other = DatasetInput(id="ds_2", ref=harness.dataset("second", "xy"))
    job_id = harness.submit(kind="share_tickets", options={"others": ["toy"]}, others=(other,))
    job = harness.drive(job_id)
    assert job.state is State.FAILED and job.error is not None and "labels clash" in job.error["message"]
    assert job.submissions.keys() <= {"baseline"}, "the linear models need no merged task"
