"""Artifacts: whole or not there, and named by their content."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tlm_core.artifacts import MARK, ArtifactStore, Manifest, ManifestRef, artifact_id
from tlm_core.errors import CorruptArtifact, NotFound, StorageFull, StorageUnavailable


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    root = str(tmp_path / "storage") if request.param == "local" else f"memory://{tmp_path.name}"
    return ArtifactStore(root, tmp_path / "cache")


def make(tmp_path: Path, files: dict[str, str]) -> Path:
    source = tmp_path / "source"
    for name, text in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    return source


def write(store: ArtifactStore, tmp_path: Path, folder: str = "a/1", text: str = "1") -> ManifestRef:
    source = make(tmp_path, {"x": text, "sub/y": "22"})
    return store.write(folder, source, artifact="art_1", stage="joint", meta={"n": 2})


def test_what_is_written_comes_back(store: ArtifactStore, tmp_path: Path) -> None:
    ref = write(store, tmp_path)
    manifest = store.verify(ref)
    assert [(f.name, f.size) for f in manifest.files] == [("sub/y", 2), ("x", 1)]
    folder = store.localize(ref)
    assert (folder / "sub/y").read_text() == "22"
    with store.open(ref, "x") as handle:
        assert handle.read() == b"1"
    assert store.localize(ref) == folder


def test_equal_content_has_an_equal_digest_wherever_it_lies(store: ArtifactStore, tmp_path: Path) -> None:
    assert write(store, tmp_path, "a/1").digest == write(store, tmp_path, "b/2").digest


def test_an_artifact_id_depends_on_stage_version_params_and_inputs() -> None:
    base: dict[str, Any] = {"stage": "joint", "version": 1, "params": {"lr": 0.1, "a": 1}, "inputs": {"task": "d1"}}
    same = artifact_id("joint", 1, {"a": 1, "lr": 0.1}, {"task": "d1"})
    assert artifact_id(**base) == same
    changes: list[dict[str, Any]] = [
        {"stage": "finetune"},
        {"version": 2},
        {"params": {"lr": 0.2, "a": 1}},
        {"inputs": {"task": "d2"}},
    ]
    assert len({artifact_id(**(base | change)) for change in changes} | {same}) == 5


@pytest.mark.parametrize("broken", ["x", "sub/y", "manifest.json"])
def test_a_lost_file_is_noticed(store: ArtifactStore, tmp_path: Path, broken: str) -> None:
    ref = write(store, tmp_path)
    store.fs.rm(store.path(ref.folder, broken))
    with pytest.raises((NotFound, CorruptArtifact)):
        store.verify(ref)
    with pytest.raises((NotFound, CorruptArtifact)):
        store.localize(ref)


@pytest.mark.parametrize("name", ["x", "manifest.json"])
def test_a_changed_byte_is_noticed(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    ref = write(store, tmp_path)
    body = bytearray(store.fs.cat_file(store.path(ref.folder, name)))
    body[0] ^= 1
    store.fs.pipe_file(store.path(ref.folder, name), bytes(body))
    with pytest.raises(CorruptArtifact):
        store.verify(ref)


def test_nothing_counts_before_the_manifest_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any file boundary: a reader never takes the folder for an artifact."""
    real = os.replace
    for survive in range(3):
        store = ArtifactStore(str(tmp_path / f"s{survive}"), tmp_path / "cache")
        left = [survive]

        def dying(source: Any, target: Any, left: list[int] = left) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            with pytest.raises(KeyboardInterrupt):
                write(store, tmp_path)
        reader = Manifest(artifact="art_1", stage="joint", files=())
        with pytest.raises(NotFound):
            store.manifest(ManifestRef(folder="a/1", digest=reader.digest))


class FaultyFileSystem(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A remote storage whose writes fail."""

    protocol = "faulty"
    cachable = False
    fault: Exception = OSError()

    def fail(self, *_: Any, **__: Any) -> Any:
        raise self.fault

    put_file = open = rm = fail


class EndpointConnectionError(Exception):
    """What the package of an object store raises where nobody answers: no OSError."""


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (OSError(errno.ENOSPC, "made up"), StorageFull),
        (OSError(errno.EIO, "made up"), StorageUnavailable),
        (EndpointConnectionError("made up"), StorageUnavailable),
    ],
)
def test_a_storage_that_fails_is_told_in_our_words(tmp_path: Path, fault: Exception, error: type[Exception]) -> None:
    store = ArtifactStore("memory://faulty", tmp_path / "cache")
    ref = write(store, tmp_path)
    store.fs = FaultyFileSystem()
    store.fs.fault = fault
    asked: list[Callable[[], object]] = [
        lambda: write(store, tmp_path, "b/2"), lambda: store.manifest(ref), lambda: store.open(ref, "x"),
        lambda: store.localize(ref), lambda: store.verify(ref), lambda: store.delete(ref.folder),
    ]  # fmt: skip
    for ask in asked:
        with pytest.raises(error):
            ask()


class BreakingFileSystem(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A remote storage that breaks off, or ends this process, at every second file."""

    protocol = "breaking"
    cachable = False
    asked = 0
    error: BaseException = OSError("connection reset")

    def get_file(self, *args: Any, **kwargs: Any) -> None:
        self.asked += 1
        if self.asked % 2 == 0:
            raise self.error
        super().get_file(*args, **kwargs)


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError("connection reset"), StorageUnavailable), (SystemExit(143), SystemExit)]
)
def test_a_copy_that_was_broken_off_takes_no_room_in_the_cache(
    tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    store = ArtifactStore("memory://breaking", tmp_path / "cache")
    ref = write(store, tmp_path)
    store.fs = faulty = BreakingFileSystem()
    faulty.error = error
    for _ in range(3):
        with pytest.raises(raised):
            store.localize(ref)
        assert list((tmp_path / "cache").iterdir()) == []


def test_copies_that_nobody_asks_for_any_more_leave_the_cache(tmp_path: Path) -> None:
    store = ArtifactStore("memory://ageing", tmp_path / "cache")
    first, second, third = (write(store, tmp_path, f"a/{number}", text=str(number)) for number in range(3))
    copies = [store.localize(first), store.localize(second)]
    killed = tmp_path / "cache" / "killed.part"
    killed.mkdir()
    for folder in (*copies, killed):
        os.utime(folder, (0, 0))
    store.localize(second)  # whoever asks for a copy keeps it
    new = store.localize(third)
    assert sorted((tmp_path / "cache").iterdir()) == sorted([copies[1], new])
    assert (store.localize(first) / "x").read_text() == "0"


@pytest.mark.parametrize("left", [None, ""])
def test_a_copy_that_was_thinned_out_is_made_again(tmp_path: Path, left: str | None) -> None:
    store = ArtifactStore("memory://thinned", tmp_path / "cache")
    ref = write(store, tmp_path)
    file = store.localize(ref) / "sub/y"
    file.unlink() if left is None else file.write_text(left)
    assert (store.localize(ref) / "sub/y").read_text() == "22"
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [ref.digest]


class SharedFileSystem(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A remote storage where others delete what was there a moment ago."""

    protocol = "shared"
    cachable = False

    def exists(self, path: str, **_: Any) -> bool:  # noqa: ARG002
        return True


def test_deleting_what_another_deletes_at_the_same_time_is_no_error(tmp_path: Path) -> None:
    store = ArtifactStore("memory://shared", tmp_path / "cache")
    store.fs = SharedFileSystem()
    store.delete("a/1")


def test_deleting_twice_is_no_error(store: ArtifactStore, tmp_path: Path) -> None:
    ref = write(store, tmp_path)
    store.delete(ref.folder)
    store.delete(ref.folder)
    with pytest.raises(NotFound):
        store.manifest(ref)


def used_before(store: ArtifactStore) -> ArtifactStore:
    """The same for a process that starts later, and knows that the storage was written to."""
    return ArtifactStore(store.fs.unstrip_protocol(store.root), store.cache, is_new=lambda: False)


@pytest.mark.parametrize("mount_point", [False, True])
def test_a_storage_that_is_away_is_waited_for_and_nothing_of_it_counts_as_lost(
    tmp_path: Path, mount_point: bool
) -> None:
    root, away = tmp_path / "storage", tmp_path / "away"
    ref = write(ArtifactStore(str(root), tmp_path / "cache"), tmp_path)
    root.rename(away)
    if mount_point:
        root.mkdir()
        (root / "NOT_MOUNTED").touch()
    store = ArtifactStore(str(root), tmp_path / "cache", is_new=lambda: False)
    asked: list[Callable[[], object]] = [
        lambda: store.manifest(ref), lambda: store.localize(ref), lambda: store.delete(ref.folder),
        lambda: write(store, tmp_path, "b/2"),
    ]  # fmt: skip
    for ask in asked:
        with pytest.raises(StorageUnavailable, match="Mount the storage"):
            ask()
    assert not (root / "b").exists(), "it would be hidden when the storage comes back"
    shutil.rmtree(root, ignore_errors=True)
    away.rename(root)
    store.verify(ref)


def test_a_storage_of_a_release_that_left_no_mark_goes_on_and_gets_one(store: ArtifactStore, tmp_path: Path) -> None:
    ref = write(store, tmp_path)
    store.fs.rm(store.path(MARK))
    later = used_before(store)
    later.verify(ref)
    with pytest.raises(NotFound):
        later.manifest(ref.model_copy(update={"folder": "a/lost"}))
    assert store.fs.exists(store.path(MARK))


def test_a_storage_that_was_emptied_by_deleting_is_still_there(store: ArtifactStore, tmp_path: Path) -> None:
    store.delete(write(store, tmp_path).folder)
    later = used_before(store)
    later.delete("a/1")
    later.verify(write(later, tmp_path))
