"""Artifacts: complete or absent, and named by their content."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest

from services.trainer.settings import TrainerSettings
from tlm_core.artifacts import Manifest, ManifestRef, artifact_id
from tlm_core.artifacts import store as store_module
from tlm_core.artifacts.manifest import FileEntry
from tlm_core.artifacts.store import MARK, ArtifactStore
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


def test_written_artifact_can_be_read(store: ArtifactStore, tmp_path: Path) -> None:
    ref = write(store, tmp_path)
    manifest = store.verify(ref)
    assert [(f.name, f.size) for f in manifest.files] == [("sub/y", 2), ("x", 1)]
    folder = store.localize(ref)
    assert (folder / "sub/y").read_text() == "22"
    with store.open(ref, "x") as handle:
        assert handle.read() == b"1"
    assert store.localize(ref) == folder


def test_equal_content_has_an_equal_digest_in_any_folder(store: ArtifactStore, tmp_path: Path) -> None:
    assert write(store, tmp_path, "a/1").digest == write(store, tmp_path, "b/2").digest


def test_artifact_id_depends_on_stage_version_params_and_inputs() -> None:
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
def test_lost_file_is_detected(store: ArtifactStore, tmp_path: Path, broken: str) -> None:
    ref = write(store, tmp_path)
    store.fs.rm(store.path(ref.folder, broken))
    with pytest.raises((NotFound, CorruptArtifact)):
        store.verify(ref)
    with pytest.raises((NotFound, CorruptArtifact)):
        store.localize(ref)


def test_file_that_is_deleted_during_the_check_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, stat = tmp_path / "x", Path.stat
    file.write_bytes(b"1")
    manifest = Manifest(artifact="a", stage="s", files=(FileEntry(name="x", size=1, sha256="0"),), meta={})

    def stat_then_delete(path: Path, **options: Any) -> os.stat_result:
        result = stat(path, **options)
        path.unlink()
        return result

    monkeypatch.setattr(Path, "stat", stat_then_delete)
    with pytest.raises(CorruptArtifact):
        manifest.check_sizes(tmp_path)


@pytest.mark.parametrize("name", ["x", "manifest.json"])
def test_changed_byte_is_detected(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    ref = write(store, tmp_path)
    body = bytearray(store.fs.cat_file(store.path(ref.folder, name)))
    body[0] ^= 1
    store.fs.pipe_file(store.path(ref.folder, name), bytes(body))
    with pytest.raises(CorruptArtifact):
        store.verify(ref)
    if not store.local:  # a local storage checks only the sizes
        with pytest.raises(CorruptArtifact):
            store.localize(ref)


def test_manifest_of_another_artifact_is_detected(store: ArtifactStore, tmp_path: Path) -> None:
    ref, other = write(store, tmp_path), write(store, tmp_path, "b/2", text="3")
    store.fs.copy(store.path(other.folder, "manifest.json"), store.path(ref.folder, "manifest.json"))
    with pytest.raises(CorruptArtifact, match="differs from the published manifest"):
        store.manifest(ref)


def test_folder_without_a_manifest_is_not_an_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is killed after each file."""
    real = os.replace
    for survive in range(3):
        store = ArtifactStore(str(tmp_path / f"s{survive}"), tmp_path / "cache")
        remaining = [survive]

        def dying(source: Any, target: Any, remaining: list[int] = remaining) -> None:
            if remaining[0] == 0:
                raise KeyboardInterrupt
            remaining[0] -= 1
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
    """The error of an object store's package for a lost connection. It is not an OSError."""


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (OSError(errno.ENOSPC, "failed"), StorageFull),
        (OSError(errno.EIO, "failed"), StorageUnavailable),
        (EndpointConnectionError("failed"), StorageUnavailable),
    ],
)
def test_storage_errors_are_translated(tmp_path: Path, fault: Exception, error: type[Exception]) -> None:
    store = ArtifactStore("memory://faulty", tmp_path / "cache")
    ref = write(store, tmp_path)
    store.fs = FaultyFileSystem()
    store.fs.fault = fault
    calls: list[Callable[[], object]] = [
        lambda: write(store, tmp_path, "b/2"), lambda: store.manifest(ref), lambda: store.open(ref, "x"),
        lambda: store.localize(ref), lambda: store.verify(ref), lambda: store.delete(ref.folder),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(error):
            call()


class BreakingFileSystem(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A remote storage whose connection, or this process, ends at every second file."""

    protocol = "breaking"
    cachable = False
    copied = 0
    error: BaseException = OSError("connection reset")

    def get_file(self, *args: Any, **kwargs: Any) -> None:
        self.copied += 1
        if self.copied % 2 == 0:
            raise self.error
        super().get_file(*args, **kwargs)


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError("connection reset"), StorageUnavailable), (SystemExit(143), SystemExit)]
)
def test_interrupted_copy_leaves_nothing_in_the_cache(
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


def test_unused_copies_are_deleted_from_the_cache(tmp_path: Path) -> None:
    store = ArtifactStore("memory://aging", tmp_path / "cache")
    first, second, third = (write(store, tmp_path, f"a/{number}", text=str(number)) for number in range(3))
    copies = [store.localize(first), store.localize(second)]
    killed = tmp_path / "cache" / "killed.part"
    killed.mkdir()
    for folder in (*copies, killed):
        os.utime(folder, (0, 0))
    store.localize(second)  # marks the copy as used
    new = store.localize(third)
    assert sorted((tmp_path / "cache").iterdir()) == sorted([copies[1], new])
    assert (store.localize(first) / "x").read_text() == "0"


@pytest.mark.parametrize("left", [None, ""])
def test_incomplete_copy_is_replaced(tmp_path: Path, left: str | None) -> None:
    store = ArtifactStore("memory://incomplete", tmp_path / "cache")
    ref = write(store, tmp_path)
    file = store.localize(ref) / "sub/y"
    file.unlink() if left is None else file.write_text(left)
    assert (store.localize(ref) / "sub/y").read_text() == "22"
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [ref.digest]


class SharedFileSystem(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A remote storage whose files another process deletes after the look-up."""

    protocol = "shared"
    cachable = False

    def exists(self, path: str, **_: Any) -> bool:  # noqa: ARG002
        return True


def test_folder_deleted_by_another_process_is_ignored(tmp_path: Path) -> None:
    store = ArtifactStore("memory://shared", tmp_path / "cache")
    store.fs = SharedFileSystem()
    store.delete("a/1")
    assert not store.fs.find("/shared/a/1")


def test_second_delete_is_ignored(store: ArtifactStore, tmp_path: Path) -> None:
    ref = write(store, tmp_path)
    store.delete(ref.folder)
    store.delete(ref.folder)
    with pytest.raises(NotFound):
        store.manifest(ref)


def used_before(store: ArtifactStore) -> ArtifactStore:
    """Return the store of a later process, which knows that the storage was written to."""
    return ArtifactStore(store.fs.unstrip_protocol(store.root), store.cache, is_new=lambda: False)


@pytest.mark.parametrize("mount_point", [False, True])
def test_unmounted_storage_is_unavailable_and_loses_nothing(tmp_path: Path, mount_point: bool) -> None:
    root, away = tmp_path / "storage", tmp_path / "away"
    ref = write(ArtifactStore(str(root), tmp_path / "cache"), tmp_path)
    root.rename(away)
    if mount_point:
        root.mkdir()
        (root / "NOT_MOUNTED").touch()
    store = ArtifactStore(str(root), tmp_path / "cache", is_new=lambda: False)
    calls: list[Callable[[], object]] = [
        lambda: store.manifest(ref), lambda: store.localize(ref), lambda: store.delete(ref.folder),
        lambda: write(store, tmp_path, "b/2"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(StorageUnavailable, match="Mount the storage"):
            call()
    assert not (root / "b").exists(), "the mount would hide it"
    shutil.rmtree(root, ignore_errors=True)
    away.rename(root)
    store.verify(ref)


def test_unmounted_storage_is_not_full(tmp_path: Path) -> None:
    ArtifactStore(str(tmp_path / "storage"), tmp_path / "cache").check_space()


def test_storage_of_an_earlier_release_gets_a_mark(store: ArtifactStore, tmp_path: Path) -> None:
    ref = write(store, tmp_path)
    store.fs.rm(store.path(MARK))
    later = used_before(store)
    later.verify(ref)
    with pytest.raises(NotFound):
        later.manifest(ref.model_copy(update={"folder": "a/lost"}))
    assert store.fs.exists(store.path(MARK))


def test_storage_emptied_by_deletion_stays_available(store: ArtifactStore, tmp_path: Path) -> None:
    store.delete(write(store, tmp_path).folder)
    later = used_before(store)
    later.delete("a/1")
    assert later.verify(write(later, tmp_path)).artifact == "art_1"


@pytest.mark.parametrize("remote", [False, True])
def test_interrupted_write_continues_where_it_stopped(tmp_path: Path, remote: bool) -> None:
    class OnceAway(ArtifactStore):
        puts = 0

        def _put(self, source: Path, target: str) -> None:
            self.puts += 1
            if self.puts == 2:
                raise OSError(errno.EIO, "away")
            super()._put(source, target)

    store = OnceAway(f"memory://{tmp_path.name}" if remote else str(tmp_path / "storage"), tmp_path / "cache")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_text(name)

    def retry(write: Callable[[], None]) -> None:
        with pytest.raises(StorageUnavailable):
            write()
        write()

    ref = store.write("folder", source, artifact="art", stage="s", retry=retry)
    assert sorted(entry.name for entry in store.verify(ref).files) == ["a", "b"]
    assert store.puts == 4


def test_root_of_a_remote_storage_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(f"memory://{tmp_path.name}", tmp_path / "cache")
    checks: list[bool] = []
    monkeypatch.setattr(store, "check_mounted", lambda *, create=False: checks.append(create))
    for name in ("a", "b"):
        store.write(name, make(tmp_path, {"file": name}), artifact=name, stage="s")
    assert checks == [True]


def test_root_of_a_local_storage_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(str(tmp_path / "storage"), tmp_path / "cache")
    listed, ls = list[str](), store.fs.ls
    monkeypatch.setattr(store.fs, "ls", lambda path, **options: listed.append(path) or ls(path, **options))
    for name in ("a", "b", "c"):
        store.write(name, make(tmp_path, {"file": name}), artifact=name, stage="s")
    assert listed.count(store.root) == 1


def test_call_to_a_hanging_storage_ends_before_leases_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server accepts connections, reads requests and never answers."""
    limits = store_module._OPTIONS["s3"]["config_kwargs"]
    real, calls = limits["read_timeout"], list[socket.socket]()
    monkeypatch.setitem(limits, "read_timeout", 0.1)
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")

        def accept() -> None:
            with suppress(OSError):
                while True:
                    calls.append(server.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        store = ArtifactStore("s3://bucket/storage", tmp_path / "cache")
        with pytest.raises(StorageUnavailable):
            store.manifest(ManifestRef(folder="a/1", digest="1" * 64))
        assert 0 < len(calls) * real < TrainerSettings(storage="", scratch=tmp_path).hang_seconds
        monkeypatch.setattr("tlm_core.artifacts.store.WRITE_SECONDS", 0.5)
        monkeypatch.setattr(store, "check_mounted", lambda **_: None)
        with pytest.raises(StorageUnavailable):
            write(store, tmp_path)
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    for call in calls:
        call.close()
