"""Content-addressed artifacts and their manifests, over any fsspec file system.

An artifact is a folder of files and a `manifest.json`, which is written last and names every other
file with its size and SHA-256. Writers work under a prefix of their own (job and attempt), so two
attempts never touch the same path. That an artifact *exists* is not decided here: a fenced step in
the job store ties an artifact id to one `ManifestRef`.
"""

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
from pydantic import BaseModel, ConfigDict

from tlm_core.errors import CorruptArtifact, NotFound, StorageFull, StorageUnavailable, TLMError

MANIFEST = "manifest.json"
MARK = ".tlm-storage"
_BLOCK = 1 << 20
# Longer than a stage computes on copies that it asked for when it began.
COPIES_KEPT_SECONDS = 14 * 24 * 3600.0
# The disk is full, the quota used up, or the file larger than the file system or a limit of the process allows.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def artifact_id(stage: str, version: int, params: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Name of what `stage` makes of `inputs` (name → manifest digest) and `params` with code `version`."""
    return "art_" + digest_of([stage, version, params, inputs])[:40]


class FileEntry(BaseModel):
    """One file of an artifact; `name` is relative to the artifact's folder, `size` in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact consists of. Holds no time, place or attempt, so equal content has an equal digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    artifact: str
    stage: str
    files: tuple[FileEntry, ...]
    meta: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        return digest_of(self.model_dump(mode="json"))

    def file(self, name: str) -> FileEntry:
        """The entry of `name`. Raises NotFound."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise NotFound(f"artifact {self.artifact} has no file '{name}'; it has {[f.name for f in self.files]}")


class ManifestRef(BaseModel):
    """Where a manifest lies (folder relative to the storage root) and the digest it must have."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: str
    digest: str


def sha256_file(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Translate what a file system raises into the project's errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{what}: {error.filename or error} is not there") from error
    except OSError as error:
        if error.errno in _NO_ROOM:
            reason = error.strerror or error
            raise StorageFull(f"{what}: no space left on the storage ({reason}); free some and try again") from error
        raise StorageUnavailable(f"{what}: the storage does not answer as it should: {error}") from error


class ArtifactStore:
    """Reads and writes artifact folders below one storage root.

    root: any fsspec address, or a plain path. cache: local folder for copies of remote artifacts
    (unused when the storage is a local folder). new: asked where nothing is found at the root: whether
    nothing was ever kept there. Raises NotFound, StorageFull, StorageUnavailable and CorruptArtifact.
    """

    def __init__(self, root: str, cache: Path, *, new: Callable[[], bool] = lambda: True) -> None:
        self.fs, path = fsspec.core.url_to_fs(root)
        self.root: str = str(path).rstrip("/")
        self.cache = cache
        self.local = isinstance(self.fs, LocalFileSystem)
        self._new = new

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    @contextmanager
    def errors(self, what: str, *, writes: bool = False) -> Iterator[None]:
        """Translate what this storage raises into the project's errors. Where the storage itself is not there, that is
        StorageUnavailable and no file is called lost. writes: look for it first, so that nothing is written into the
        empty folder where it should be mounted.
        """
        try:
            with storage_errors(what):
                try:
                    if writes:
                        self.look_for_itself(writes=True)
                    yield
                except (FileNotFoundError, NotFound):
                    self.look_for_itself()
                    raise
        except TLMError:
            raise
        except Exception as error:
            # A remote one's package has classes of its own: no connection, no answer in time, no credentials.
            if self.local:
                raise
            raise StorageUnavailable(
                f"{what}: the storage does not answer as it should: {type(error).__name__}: {error}"
            ) from error

    def look_for_itself(self, *, writes: bool = False) -> None:
        """See that the storage is there, by the mark that the first write leaves; one of an earlier release, which left
        none, is known by its folders. Raises StorageUnavailable."""
        try:
            found = self.fs.ls(self.root, detail=True, refresh=True)
        except FileNotFoundError:
            found = []
        if any(str(entry["name"]).endswith(f"/{MARK}") for entry in found):
            return
        folders = any(entry["type"] == "directory" for entry in found)
        if not folders and not self._new():
            raise StorageUnavailable(
                f"{self.root} is not the storage that was written to, since it lacks the file {MARK}: mount it there, "
                f"or check the setting; if all that it held is lost, make an empty file {MARK} in the new one"
            )
        if folders or writes:
            if self.local:
                Path(self.root).mkdir(parents=True, exist_ok=True)
            self.fs.pipe_file(self.path(MARK), b"By this file the service knows its storage.\n")

    def write(
        self, folder: str, source: Path, *, artifact: str, stage: str, meta: Mapping[str, Any] | None = None
    ) -> ManifestRef:
        """Move the files of `source` to `folder` and write the manifest last. `source` is gone afterwards."""
        names = sorted(str(p.relative_to(source)) for p in source.rglob("*") if p.is_file())
        manifest = Manifest(
            artifact=artifact,
            stage=stage,
            files=tuple(
                FileEntry(name=n, size=(source / n).stat().st_size, sha256=sha256_file(source / n)) for n in names
            ),
            meta=dict(meta or {}),
        )
        with self.errors(f"writing {folder}", writes=True):
            for name in names:
                self._put(source / name, self.path(folder, name))
            body = source / f".{uuid.uuid4().hex}"
            body.write_text(canonical_json(manifest.model_dump(mode="json")), encoding="utf-8")
            self._put(body, self.path(folder, MANIFEST))
        shutil.rmtree(source, ignore_errors=True)
        return ManifestRef(folder=folder, digest=manifest.digest)

    def _put(self, source: Path, target: str) -> None:
        if not self.local:
            self.fs.put_file(str(source), target)
            return
        # A manifest must never outlive a power cut that its files did not: content and name are synced in order.
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with open(source, "rb+") as handle:
            os.fsync(handle.fileno())
        try:
            os.replace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            partial = f"{target}.{uuid.uuid4().hex}.part"
            try:
                shutil.copyfile(source, partial)
                with open(partial, "rb+") as handle:
                    os.fsync(handle.fileno())
                os.replace(partial, target)
            except BaseException:
                # On a full disk the piece that found room would keep everyone else from finding any.
                Path(partial).unlink(missing_ok=True)
                raise
        descriptor = os.open(os.path.dirname(target), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def manifest(self, ref: ManifestRef) -> Manifest:
        """The manifest at `ref`. Raises CorruptArtifact if it is not the one that was published."""
        with self.errors(f"reading {ref.folder}"), self.fs.open(self.path(ref.folder, MANIFEST), "rb") as handle:
            body = handle.read()
        try:
            manifest = Manifest.model_validate_json(body)
        except ValueError as error:
            raise CorruptArtifact(f"{ref.folder}/{MANIFEST} cannot be read; restore it or rerun the stage") from error
        if manifest.digest != ref.digest:
            raise CorruptArtifact(f"{ref.folder}/{MANIFEST} differs from what was published; restore it or rerun")
        return manifest

    def open(self, ref: ManifestRef, name: str) -> IO[bytes]:
        """A binary reader of one file of the artifact; the caller closes it."""
        with self.errors(f"reading {ref.folder}/{name}"):
            handle: IO[bytes] = self.fs.open(self.path(ref.folder, name), "rb")
            return handle

    def localize(self, ref: ManifestRef) -> Path:
        """A local folder with the artifact's files, checked against the manifest.

        A local storage is used in place (sizes are checked); a remote one is copied to the cache once, where it stays
        until nobody has asked for it in COPIES_KEPT_SECONDS.
        """
        manifest = self.manifest(ref)
        if self.local:
            folder = Path(self.path(ref.folder))
            _check_sizes(folder, manifest)
            return folder
        folder = self.cache / ref.digest
        with suppress(FileNotFoundError):
            os.utime(folder)  # it is in use
        if not _whole(folder, manifest):
            self._copy(ref, manifest, folder)
            drop_untouched(self.cache, COPIES_KEPT_SECONDS)  # old copies, and what killed processes left of theirs
        return folder

    def _copy(self, ref: ManifestRef, manifest: Manifest, folder: Path) -> None:
        """Copy a remote artifact to `folder`, all of it or nothing."""
        partial = self.cache / f"{ref.digest}.{uuid.uuid4().hex}.part"
        try:
            with self.errors(f"copying {ref.folder}"):
                partial.mkdir(parents=True)
                for entry in manifest.files:
                    (partial / entry.name).parent.mkdir(parents=True, exist_ok=True)
                    self.fs.get_file(self.path(ref.folder, entry.name), str(partial / entry.name))
                    _check(partial / entry.name, entry, deep=True)
                try:
                    os.rename(partial, folder)
                except OSError:
                    if not folder.exists():  # else another process was first; its copy is as good
                        raise
        finally:
            # What failed half-way would take room with every try.
            shutil.rmtree(partial, ignore_errors=True)

    def check(self, ref: ManifestRef) -> None:
        """See that the artifact stands, as far as that costs little: the sizes of files in a local storage, of a remote
        one the manifest. Raises CorruptArtifact or NotFound."""
        self.localize(ref) if self.local else self.manifest(ref)

    def verify(self, ref: ManifestRef) -> Manifest:
        """Read every byte of the artifact and compare. Raises CorruptArtifact or NotFound."""
        manifest = self.manifest(ref)
        for entry in manifest.files:
            digest = hashlib.sha256()
            size = 0
            with self.errors(f"reading {ref.folder}/{entry.name}"), self.open(ref, entry.name) as handle:
                while block := handle.read(_BLOCK):
                    digest.update(block)
                    size += len(block)
            if size != entry.size or digest.hexdigest() != entry.sha256:
                raise CorruptArtifact(f"{ref.folder}/{entry.name} does not match its manifest; restore it or rerun")
        return manifest

    def delete(self, folder: str) -> None:
        """Remove a folder and all below it; removing what is not there is no error."""
        # Nothing is looked up before: another process may remove it in between.
        with suppress(NotFound), self.errors(f"deleting {folder}"):
            self.fs.rm(self.path(folder), recursive=True)


def _check(path: Path, entry: FileEntry, *, deep: bool) -> None:
    if not path.is_file():
        raise CorruptArtifact(f"{path.name} is named by its manifest but is not there; restore it or rerun")
    if path.stat().st_size != entry.size or (deep and sha256_file(path) != entry.sha256):
        raise CorruptArtifact(f"{path.name} does not match its manifest; restore it or rerun the stage")


def _check_sizes(folder: Path, manifest: Manifest) -> None:
    for entry in manifest.files:
        _check(folder / entry.name, entry, deep=False)


def _whole(folder: Path, manifest: Manifest) -> bool:
    """Whether a copy stands as it was made. One that somebody's cleaning has thinned out is dropped."""
    if not folder.exists():
        return False
    try:
        _check_sizes(folder, manifest)
    except CorruptArtifact:
        _drop(folder)
        return False
    return True


def drop_untouched(folder: Path, seconds: float) -> None:
    """Remove the folders in a folder, if there is one, that were not changed for so long; not those of another user."""
    oldest = time.time() - seconds
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError, PermissionError):  # another process drops it, too, or is another user's
            if path.stat().st_mtime < oldest:
                _drop(path)


def _drop(folder: Path) -> None:
    """Remove a folder; nobody finds half of it. Nothing happens if another process was first."""
    aside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.part")
    with suppress(FileNotFoundError):
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
