"""Checkpoints on a storage that is full: training goes on, the older ones stay, no half one takes room."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from services.common.jobstore import JobStore
from services.trainer.checkpoints import JobCheckpoints
from tests.factories import make_resolved, make_spec
from tlm_core.artifacts import ArtifactStore
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
        made = self.folder / f"made-{self.step}"
        made.mkdir()
        for name in ("state.json", "weights"):
            (made / name).write_text(f"{name} {self.step}")
        self.checkpoints.save(made, step=self.step, metrics={})

    def kept(self) -> set[str]:
        return {path.parent.name for path in (self.folder / "storage").rglob("*") if path.is_file()}


@pytest.fixture
def training(redis_client: redis.Redis, tmp_path: Path) -> Training:
    store, disk = JobStore(redis_client), FillingDisk(str(tmp_path / "storage"), tmp_path / "cache")
    store.submit(T, make_spec(), make_resolved())
    job = store.claim("a", 60)
    assert job is not None
    return Training(JobCheckpoints(store, disk, job, job.attempt, "joint.s0", "art_1"), disk, tmp_path)


def wait(training: Training) -> None:
    """Until the last save has been settled, as the next one or the end of the stage does."""
    training.checkpoints._settle()


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
    training.checkpoints.close()
    latest = training.checkpoints.latest()
    assert latest is not None and (latest / "weights").read_text() == "weights 3"


@pytest.mark.parametrize("end", [lambda t: t.save(), lambda t: t.checkpoints.close()], ids=["save", "close"])
def test_the_second_in_a_row_ends_the_attempt_with_the_cause(
    training: Training, end: Callable[[Training], None]
) -> None:
    training.disk.room = 0
    training.save()
    training.save()
    with pytest.raises(StorageFull, match="no space left on the storage"):
        end(training)
