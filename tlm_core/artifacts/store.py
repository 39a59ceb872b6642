"""The artifact store: reads and writes artifact folders below one storage root."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tlm_core.artifacts.faults import storage_errors
from tlm_core.artifacts.hashing import canonical_json, sha256_file
from tlm_core.artifacts.manifest import MANIFEST, Manifest, ManifestRef, mismatch
from tlm_core.errors import CorruptArtifact, NotFound, StorageFull, StorageUnavailable, TLMError
from tlm_core.pulse import PULSE, TransferPulse

MARK = ".tlm-storage"
WRITE_SECONDS = 100.0  # time limit of a write to a remote storage, plus one second for each MiB
_BLOCK = 1 << 20
_RESERVE = 1 << 30  # bytes of a local disk that stay free, or a twentieth of the disk if that is less
# Unused copies are deleted after this time. Stages are shorter, so a stage never loses the copies that it uses.
_COPY_SECONDS = 14 * 24 * 3600.0

# Without timeouts, a storage that does not respond would block a coordinator and all its jobs.
# The client does not retry, because s3fs tries each call five times.
_OPTIONS = {"s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 20, "retries": {"max_attempts": 0}}}}


def deadline(fs: fsspec.AbstractFileSystem, size: int) -> dict[str, float]:
    """Return `{"timeout": SECONDS}` for a write of `size` bytes to a remote storage, and `{}` for a local storage.

    A write needs this time limit, because a storage client can wait forever until the server accepts the data.
    """
    return {"timeout": WRITE_SECONDS + size / 2**20} if fs.async_impl else {}


class ArtifactStore:
    """Reads and writes artifact folders. Raises NotFound, StorageFull, StorageUnavailable or CorruptArtifact.

    root: an fsspec address or a path. cache: local folder for copies of remote artifacts. A local storage needs no
    copies. is_new: a function that returns whether nothing was ever written to the storage.
    """

    def __init__(self, root: str, cache: Path, *, is_new: Callable[[], bool] = lambda: True) -> None:
        self.fs, path = fsspec.core.url_to_fs(root, **_OPTIONS.get(root.partition(":")[0], {}))
        self.root: str = str(path).rstrip("/")
        self.cache = cache
        self.local = isinstance(self.fs, LocalFileSystem)
        self._is_new = is_new
        self._mounted = False

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def check_mounted(self, *, create: bool = False) -> None:
        """Raise StorageUnavailable if the storage is not mounted. create: write the file MARK into a new storage.

        A mounted storage has the file MARK. Without this file, an empty mount point would look like a new storage.
        A storage with folders but without MARK comes from an earlier release, so this method writes MARK there.
        """
        if self.local and Path(self.path(MARK)).is_file():
            return  # Each write runs this check, so it avoids listing the root, which has many entries.
        try:
            entries = self.fs.ls(self.root, detail=True, refresh=True)
        except FileNotFoundError:
            entries = []
        if any(str(entry["name"]).endswith(f"/{MARK}") for entry in entries):
            return
        has_folders = any(entry["type"] == "directory" for entry in entries)
        if not has_folders and not self._is_new():
            raise StorageUnavailable(
                f"{self.root} is not the storage of this service: the file {MARK} is missing. Mount the storage there "
                "or correct the setting 'storage'. If the content of the storage is lost, create an empty file "
                f"{MARK} there."
            )
        if has_folders or create:
            if self.local:
                Path(self.root).mkdir(parents=True, exist_ok=True)
            body = b"The service recognizes its storage by this file.\n"
            self.fs.pipe_file(self.path(MARK), body, **deadline(self.fs, len(body)))

    def answers(self) -> bool:
        """Return whether the storage can be reached and is mounted."""
        try:
            with self.errors("checking the storage"):
                self.check_mounted()
        except TLMError:
            return False
        return True

    def check_space(self, extra: int = 0) -> None:
        """Raise StorageFull if a local disk is almost full, or would be after an upload of `extra` bytes.

        Redis can use the same disk, and Redis exits when the disk is full.
        """
        if not self.local:
            return
        try:
            with storage_errors("measuring the free space of the storage"):
                total, _, free = shutil.disk_usage(self.root)
        except NotFound:  # A storage without a root folder is new or not mounted, but not full.
            return
        if free < (needed := min(_RESERVE, total // 20) + extra):
            refused = f"An upload of {extra >> 20} MiB is refused" if extra else "Nothing is written"
            raise StorageFull(
                f"The disk of the storage has only {free >> 20} MiB of free space. {refused} until "
                f"{needed >> 20} MiB are free. Delete jobs and datasets, or enlarge the disk."
            )

    @contextmanager
    def errors(self, action: str, *, writes: bool = False) -> Iterator[None]:
        """Translate errors of the storage inside the block, as `storage_errors` does.

        All other errors of a remote storage become StorageUnavailable, and so does a missing file if the storage is not
        mounted. writes: whether to check before the block that the storage is mounted and has free space. Without this
        check, the block could write into an empty mount point.
        """
        try:
            with storage_errors(action):
                try:
                    # A remote storage cannot be unmounted, and listing its root costs a request.
                    if writes and (self.local or not self._mounted):
                        self.check_mounted(create=True)
                        self.check_space()
                        self._mounted = True
                    yield
                except (FileNotFoundError, NotFound):
                    self.check_mounted()
                    raise
        except TLMError:
            raise
        except Exception as error:
            # The library of a remote storage has its own classes for lost connections, timeouts and credentials.
            if self.local:
                raise
            raise StorageUnavailable(
                f"Failed {action}: the storage returned an error: {type(error).__name__}: {error}. Check the storage."
            ) from error

    def write(
        self,
        folder: str,
        source: Path,
        *,
        artifact: str,
        stage: str,
        meta: Mapping[str, object] | None = None,
        retry: Callable[[Callable[[], None]], None] = lambda write: write(),
    ) -> ManifestRef:
        """Move the files of the local folder `source` to `folder`, write the manifest last, and delete `source`.

        Returns the reference of the manifest. retry: a function that calls its argument, and repeats the call after an
        error. A repeated call writes only the files that earlier calls did not write.
        """
        manifest = Manifest.of_folder(source, artifact=artifact, stage=stage, meta=meta or {})
        remaining = {entry.name: source / entry.name for entry in manifest.files}
        remaining[MANIFEST] = source / f".{uuid.uuid4().hex}"

        def write() -> None:
            with self.errors(f"writing {folder}", writes=True):
                body = canonical_json(manifest.model_dump(mode="json"))
                remaining[MANIFEST].write_text(body, encoding="utf-8")
                for name in list(remaining):
                    self._put(remaining[name], self.path(folder, name))
                    del remaining[name]

        retry(write)
        shutil.rmtree(source, ignore_errors=True)
        return ManifestRef(folder=folder, digest=manifest.digest)

    def _put(self, source: Path, target: str) -> None:
        if not self.local:
            self.fs.put_file(str(source), target, callback=TransferPulse(), **deadline(self.fs, source.stat().st_size))
            return
        # After a power cut, no manifest may exist without its files. So each file is synced before the next is moved.
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        if source.exists():  # Otherwise an earlier try has moved the file.
            _move(source, target)
        descriptor = os.open(os.path.dirname(target), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def manifest(self, ref: ManifestRef) -> Manifest:
        """Return the manifest at `ref`. Raises CorruptArtifact if the manifest's digest differs from `ref.digest`."""
        with self.errors(f"reading {ref.folder}"), self.fs.open(self.path(ref.folder, MANIFEST), "rb") as handle:
            body = handle.read()
        try:
            manifest = Manifest.model_validate_json(body)
        except ValueError as error:
            raise CorruptArtifact(
                f"{ref.folder}/{MANIFEST} is unreadable. Restore it from a backup, or clone the job that wrote it: "
                "tlm clone JOB."
            ) from error
        if manifest.digest != ref.digest:
            raise CorruptArtifact(
                f"{ref.folder}/{MANIFEST} differs from the published manifest. Restore it from a backup, or clone "
                "the job that wrote it: tlm clone JOB."
            )
        return manifest

    def open(self, ref: ManifestRef, name: str) -> IO[bytes]:
        """Return a binary reader of one file of the artifact. The caller closes it."""
        with self.errors(f"reading {ref.folder}/{name}"):
            return self.fs.open(self.path(ref.folder, name), "rb")

    def read_json(self, ref: ManifestRef, name: str) -> dict[str, Any]:
        """Return the JSON object in a file of the artifact."""
        with self.open(ref, name) as handle:
            return json.load(handle)

    def localize(self, ref: ManifestRef) -> Path:
        """Return a local folder with the artifact's files. Raises CorruptArtifact if a file differs from the manifest.

        For a local storage, return the artifact's own folder, and check only the sizes of the files. For a remote
        storage, return the copy in the cache. If this copy is missing or incomplete, first copy the artifact and check
        the digests, and also delete copies that no call requested for 14 days.
        """
        manifest = self.manifest(ref)
        if self.local:
            folder = Path(self.path(ref.folder))
            manifest.check_sizes(folder)
            return folder
        folder = self.cache / ref.digest
        with suppress(FileNotFoundError):
            os.utime(folder)  # Marks the copy as used.
        if not _is_complete(folder, manifest):
            self._copy(ref, manifest, folder)
            drop_untouched(self.cache, _COPY_SECONDS)  # Also deletes partial copies of killed processes.
        return folder

    def _copy(self, ref: ManifestRef, manifest: Manifest, folder: Path) -> None:
        """Copy a remote artifact to `folder`, completely or not at all."""
        partial = self.cache / f"{ref.digest}.{uuid.uuid4().hex}.part"
        try:
            with self.errors(f"copying {ref.folder}"):
                partial.mkdir(parents=True)
                for entry in manifest.files:
                    target = partial / entry.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self.fs.get_file(self.path(ref.folder, entry.name), str(target), callback=TransferPulse())
                    if sha256_file(target) != entry.sha256:
                        raise mismatch(f"{ref.folder}/{entry.name}")
                try:
                    os.rename(partial, folder)
                except OSError:
                    if not folder.exists():  # Otherwise another process has made the same copy.
                        raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # Partial copies would fill the disk.

    def check(self, ref: ManifestRef) -> None:
        """Check the manifest of an artifact and, in a local storage, the sizes of the files.

        Raises CorruptArtifact or NotFound. `verify` also reads the files.
        """
        self.localize(ref) if self.local else self.manifest(ref)

    def verify(self, ref: ManifestRef) -> Manifest:
        """Check every byte of an artifact, and return its manifest. Raises CorruptArtifact or NotFound."""
        manifest = self.manifest(ref)
        for entry in manifest.files:
            digest = hashlib.sha256()
            with self.errors(f"reading {ref.folder}/{entry.name}"), self.open(ref, entry.name) as handle:
                while block := handle.read(_BLOCK):
                    digest.update(block)
                    PULSE.advance()
            if digest.hexdigest() != entry.sha256:
                raise mismatch(f"{ref.folder}/{entry.name}")
        return manifest

    def delete(self, folder: str) -> None:
        """Delete a folder with its content. A missing folder is ignored, because another process may delete it too."""
        with suppress(NotFound), self.errors(f"deleting {folder}"):
            self.fs.rm(self.path(folder), recursive=True)

    def delete_empty(self, folder: str) -> None:
        """Delete a folder of a local storage if it is empty. A remote storage has no empty folders."""
        if self.local:
            with suppress(OSError):
                os.rmdir(self.path(folder))

    def subfolders(self, folder: str, depth: int = 1) -> list[str]:
        """Return the folders `depth` levels below `folder`, relative to the root. A missing folder has none."""
        if not depth:
            return [folder]
        path = self.path(folder).rstrip("/")
        with self.errors(f"listing {folder}"):
            entries = self.fs.ls(path, detail=True, refresh=True) if self.fs.exists(path) else []
        names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]
        return [below for name in names for below in self.subfolders(f"{folder}/{name}".lstrip("/"), depth - 1)]


def _sync(path: Path) -> None:
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


def _move(source: Path, target: str) -> None:
    """Move a file, also to another file system, completely or not at all."""
    _sync(source)
    try:
        os.replace(source, target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    partial = Path(f"{target}.{uuid.uuid4().hex}.part")
    try:
        shutil.copyfile(source, partial)
        _sync(partial)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)  # On a full disk, the partial file would leave no space for other files.
        raise


def _is_complete(folder: Path, manifest: Manifest) -> bool:
    """Return whether a cached copy has all files of `manifest`, with their sizes. Delete an incomplete copy."""
    if not folder.exists():
        return False
    try:
        manifest.check_sizes(folder)
    except CorruptArtifact:
        _delete(folder)
        return False
    return True


def drop_untouched(folder: Path, seconds: float) -> None:
    """Delete the subfolders that have not changed for `seconds`, if the process has permission to delete them."""
    oldest = time.time() - seconds
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError, PermissionError):
            if path.is_dir() and path.stat().st_mtime < oldest:
                _delete(path)


def _delete(folder: Path) -> None:
    """Rename a folder, then delete it, so that no process reads a partly deleted folder. Ignore a missing folder."""
    renamed = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.part")
    with suppress(FileNotFoundError):
        os.rename(folder, renamed)
        shutil.rmtree(renamed, ignore_errors=True)
