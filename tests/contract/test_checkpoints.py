"""Checkpoints on a full storage: training continues, older checkpoints stay, and partial ones are deleted."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis

from services.common.jobstore import JobStore
from services.trainer import patience
from services.trainer.checkpoints import JobCheckpoints
from tests.factories import make_resolved, make_spec
from tests.support import files_under
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import MARK, ArtifactStore
from tlm_core.errors import Conflict, StorageFull, StoreUnavailable, WorkerLost

T = "default"


class FillingDisk(ArtifactStore):
    """A storage with room for `room` more files."""

    room = 1_000

    def _put(self, source: Path, target: str) -> None:
        if not self.room:
            raise OSError(errno.ENOSPC, f"no space left for {source.name}")
        self.room -= 1
        super()._put(source, target)


@dataclass
class Training:
    """A stage that saves checkpoints."""

    checkpoints: JobCheckpoints
    disk: FillingDisk
    folder: Path
    step: int = field(default=0)

    def save(self) -> None:
        self.step += 1
        self.checkpoints.save(partial(self.write, self.step), step=self.step, metrics={})

    def write(self, step: int, folder: Path) -> None:
        for name in ("state.json", "weights"):
            (folder / name).write_text(f"{name} {step}")

    def published(self) -> set[str]:
        return {path.parent.name for path in files_under(self.folder / "storage") if path.name != MARK}


def training_of(store: JobStore, folder: Path, scratch: Path) -> Training:
    """Return the training of a new job. All jobs share one stage."""
    store.submit(T, make_spec(), make_resolved())
    job = store.claim("a", 60)
    assert job is not None
    disk = FillingDisk(str(folder / "storage"), folder / "cache")
    return Training(JobCheckpoints(store, disk, job, "joint.s0", "art_1", scratch), disk, folder)


@pytest.fixture
def training(redis_client: redis.Redis, tmp_path: Path) -> Training:
    return training_of(JobStore(redis_client), tmp_path, tmp_path)


@pytest.fixture
def other(training: Training, redis_client: redis.Redis, tmp_path: Path) -> Training:
    (scratch := tmp_path / "other").mkdir()
    return training_of(JobStore(redis_client), training.folder, scratch)


def wait(training: Training) -> None:
    """Wait for the last save, as the next save does."""
    training.checkpoints._wait(required=False)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_one_failed_checkpoint_does_not_end_training(training: Training, room: int) -> None:
    training.save()
    wait(training)
    training.disk.room = room
    training.save()
    wait(training)
    assert training.published() == {"step-000000001"}, "a partial checkpoint is deleted"
    latest = training.checkpoints.latest()
    assert latest is not None and (latest / "weights").read_text() == "weights 1"
    training.disk.room = 1_000
    training.save()
    training.checkpoints.close(required=True)
    latest = training.checkpoints.latest()
    assert latest is not None and (latest / "weights").read_text() == "weights 3"


def test_second_failed_checkpoint_in_a_row_raises(training: Training) -> None:
    training.disk.room = 0
    training.save()
    training.save()
    with pytest.raises(StorageFull, match="no space left on the storage"):
        training.save()


@pytest.mark.parametrize("saves", [1, 2])
def test_failed_last_checkpoint_does_not_fail_a_finished_stage(training: Training, saves: int) -> None:
    training.disk.room = 0
    for _ in range(saves):
        training.save()
    training.checkpoints.close(required=False)
    assert training.checkpoints.newest() is None


def test_last_checkpoint_of_a_stopped_stage_waits_for_the_storage(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_wait", lambda _: setattr(training.disk, "room", 1_000))
    training.disk.room = 0
    training.save()
    training.checkpoints.close(required=True)
    latest = training.checkpoints.latest()
    assert latest is not None and (latest / "weights").read_text() == "weights 1"


def test_last_checkpoint_of_a_stopped_stage_waits_for_redis(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, errors = training.checkpoints.store.publish_checkpoint, [StoreUnavailable("away")] * 3

    def publish_without_answer(*args: Any) -> None:
        publish(*args)
        if errors:
            raise errors.pop()

    monkeypatch.setattr(training.checkpoints.store, "publish_checkpoint", publish_without_answer)
    training.save()
    training.checkpoints.close(required=True)
    assert [checkpoint.step for checkpoint in training.checkpoints._published()] == [1]
    assert training.published() == {"step-000000001"}


def test_newest_checkpoint_is_read_patiently(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    read, errors = training.checkpoints.store.checkpoints, [StoreUnavailable("away")]
    training.save()
    wait(training)
    monkeypatch.setattr(
        training.checkpoints.store, "checkpoints", lambda *args: read(*args) if not errors else raising(errors.pop())
    )
    assert training.checkpoints.newest() == 1


def raising(error: Exception) -> NoReturn:
    raise error


def test_failed_checkpoint_of_a_stopped_stage_raises(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 0.0)
    training.disk.room = 0
    training.save()
    with pytest.raises(StorageFull, match="no space left on the storage"):
        training.checkpoints.close(required=True)


def test_two_newest_checkpoints_stay(training: Training) -> None:
    for _ in range(4):
        training.save()
    assert training.checkpoints.newest() == 4, "newest waits for the pending checkpoint"
    training.checkpoints.close(required=True)
    assert training.published() == {"step-000000003", "step-000000004"}


def test_slower_job_does_not_delete_the_furthest_checkpoint(training: Training, other: Training) -> None:
    training.step = 998
    for job in (training, training, other, other, other):
        job.save()
        wait(job)
    assert training.published() == {"step-000001000", "step-000000003"}
    for job in (training, other):
        latest = job.checkpoints.latest()
        assert latest is not None and (latest / "weights").read_text() == "weights 1000", "both jobs read it"
        assert job.checkpoints.newest() == 1000


def test_checkpoint_that_replaces_a_deleted_one_is_loaded(
    training: Training, other: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.save()
    wait(training)
    verify = other.disk.verify

    def verify_after_two_saves(ref: ManifestRef) -> None:
        while training.step < 3:  # after the list was read
            training.save()
            wait(training)
        verify(ref)

    monkeypatch.setattr(other.disk, "verify", verify_after_two_saves)
    latest = other.checkpoints.latest()
    assert latest is not None and (latest / "weights").read_text() == "weights 3"


def test_drop_deletes_only_the_jobs_own_checkpoints(training: Training, other: Training) -> None:
    for job in (training, other):
        job.step += len(job.published())
        job.save()
        wait(job)
    training.checkpoints.drop()
    assert other.published() == {"step-000000002"}
    assert other.checkpoints.newest() == 2


def test_new_checkpoints_stay_beside_a_damaged_further_one(training: Training) -> None:
    training.step = 998
    for _ in range(2):
        training.save()
    wait(training)
    for broken in (training.folder / "storage").rglob("weights"):
        broken.write_text("broken")
    training.step = 0
    for _ in range(3):
        training.save()
        wait(training)
        latest = training.checkpoints.latest()
        assert latest is not None and (latest / "weights").read_text() == f"weights {training.step}"


def test_save_waits_only_for_the_previous_checkpoint(training: Training) -> None:
    may_write, second = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        may_write.wait(10)
        training.write(1, folder)

    def save_again() -> None:
        training.step = 1
        training.save()
        second.set()

    training.checkpoints.save(slow, step=1, metrics={})  # returns before anything is written
    assert not training.published()
    waits = threading.Thread(target=save_again)
    waits.start()
    assert not second.wait(0.2), "the second save waits"
    may_write.set()
    assert second.wait(10)
    waits.join()
    training.checkpoints.close(required=True)
    assert training.published() == {"step-000000001", "step-000000002"}


def test_full_scratch_disk_counts_as_a_failed_checkpoint(training: Training) -> None:
    def full(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise StorageFull("no space left on the scratch disk")

    training.checkpoints.save(full, step=1, metrics={})
    wait(training)
    assert not list(training.folder.glob("checkpoint-*")), "a partial checkpoint is deleted"
    training.save()
    training.checkpoints.close(required=True)
    assert training.checkpoints.latest() is not None


def test_refused_checkpoint_leaves_no_files(training: Training) -> None:
    job = training.checkpoints.job
    training.checkpoints.store.requeue(job, "a", WorkerLost("lost"), 0)
    training.save()
    with pytest.raises(Conflict):
        wait(training)
    assert training.published() == set()
