"""Checkpoints on a storage that is full: training goes on, the older ones stay, no half one takes room."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import redis

from services.common.jobstore import JobStore
from services.trainer.checkpoints import JobCheckpoints
from tests.factories import make_resolved, make_spec
from tests.support import files_under
from tlm_core.artifacts import MARK, ArtifactStore
from tlm_core.errors import StorageFull

T = "default"


class FillingDisk(ArtifactStore):
    """A storage that takes `room` files more."""

    room = 1_000

    def _put(self, source: Path, target: str) -> None:
        if not self.room:
            raise OSError(errno.ENOSPC, f"no space left for {source.name}")
        self.room -= 1
        super()._put(source, target)


@dataclass
class Training:
    """What a stage does with its checkpoints."""

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

    def kept(self) -> set[str]:
        return {path.parent.name for path in files_under(self.folder / "storage") if path.name != MARK}


def training_of(store: JobStore, folder: Path, scratch: Path) -> Training:
    """Another job's, on the one stage that all of them have."""
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
    """Until the last save has been settled, as the next one or the end of the stage does."""
    training.checkpoints._wait(required=False)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_one_checkpoint_that_finds_no_room_does_not_end_the_training(training: Training, room: int) -> None:
    training.save()
    wait(training)
    training.disk.room = room
    training.save()
    wait(training)
    assert training.kept() == {"step-000000001"}, "no half checkpoint takes room"
    latest = training.checkpoints.latest()
    assert latest is not None and (latest / "weights").read_text() == "weights 1"
    training.disk.room = 1_000
    training.save()
    training.checkpoints.close(required=True)
    latest = training.checkpoints.latest()
    assert latest is not None and (latest / "weights").read_text() == "weights 3"


def test_the_second_in_a_row_ends_the_attempt_with_the_cause(training: Training) -> None:
    training.disk.room = 0
    training.save()
    training.save()
    with pytest.raises(StorageFull, match="no space left on the storage"):
        training.save()


@pytest.mark.parametrize("saves", [1, 2])
def test_what_failed_to_be_kept_at_the_end_spoils_no_stage_that_is_done(training: Training, saves: int) -> None:
    training.disk.room = 0
    for _ in range(saves):
        training.save()
    training.checkpoints.close(required=False)
    assert training.checkpoints.newest() is None


def test_a_checkpoint_that_a_stopped_job_is_to_go_on_from_must_be_kept(training: Training) -> None:
    training.disk.room = 0
    training.save()
    with pytest.raises(StorageFull, match="no space left on the storage"):
        training.checkpoints.close(required=True)


def test_the_newest_two_are_kept(training: Training) -> None:
    for _ in range(4):
        training.save()
    assert training.checkpoints.newest() == 4, "the one under way counts once it is whole"
    training.checkpoints.close(required=True)
    assert training.kept() == {"step-000000003", "step-000000004"}


def test_a_job_far_ahead_keeps_its_last_checkpoint_when_another_begins_the_same_stage(
    training: Training, other: Training
) -> None:
    training.step = 998
    for one in (training, training, other, other, other):
        one.save()
        wait(one)
    assert training.kept() == {"step-000001000", "step-000000003"}
    for one in (training, other):
        latest = one.checkpoints.latest()
        assert latest is not None and (latest / "weights").read_text() == "weights 1000", "for both of them"
        assert one.checkpoints.newest() == 1000


def test_only_the_jobs_own_checkpoints_are_dropped(training: Training, other: Training) -> None:
    for one in (training, other):
        one.step += len(one.kept())
        one.save()
        wait(one)
    training.checkpoints.drop()
    assert other.kept() == {"step-000000002"}
    assert other.checkpoints.newest() == 2


def test_a_broken_checkpoint_further_on_is_no_reason_to_keep_none(training: Training) -> None:
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


def test_training_waits_for_no_checkpoint_but_the_one_before(training: Training) -> None:
    may_write, second = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        may_write.wait(10)
        training.write(1, folder)

    def save_again() -> None:
        training.step = 1
        training.save()
        second.set()

    training.checkpoints.save(slow, step=1, metrics={})  # comes back while nothing is written yet
    assert not training.kept()
    waits = threading.Thread(target=save_again)
    waits.start()
    assert not second.wait(0.2), "a second one must not overtake the first"
    may_write.set()
    assert second.wait(10)
    waits.join()
    training.checkpoints.close(required=True)
    assert training.kept() == {"step-000000001", "step-000000002"}


def test_no_room_for_the_files_before_they_are_moved_is_the_same_as_no_room_for_them(training: Training) -> None:
    def full(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise StorageFull("no space left on the scratch disk")

    training.checkpoints.save(full, step=1, metrics={})
    wait(training)
    assert not list(training.folder.glob("checkpoint-*")), "no half checkpoint takes room"
    training.save()
    training.checkpoints.close(required=True)
    assert training.checkpoints.latest() is not None
