"""Manifests: the list of an artifact's files with their sizes and digests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tlm_core.artifacts.hashing import digest_of, sha256_file
from tlm_core.errors import CorruptArtifact, NotFound

MANIFEST = "manifest.json"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Value):
    """One file of an artifact. name: path relative to the artifact's folder. size: bytes."""

    name: str
    size: int
    sha256: str


class Manifest(_Value):
    """The files and metadata of an artifact, without a time or attempt, so that equal content has an equal digest."""

    artifact: str
    stage: str
    files: tuple[FileEntry, ...]
    meta: dict[str, Any] = {}

    @classmethod
    def of_folder(cls, folder: Path, *, artifact: str, stage: str, meta: Mapping[str, object]) -> Manifest:
        """Return the manifest of all files in a local folder."""
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        files = (FileEntry(name=n, size=(folder / n).stat().st_size, sha256=sha256_file(folder / n)) for n in names)
        return cls(artifact=artifact, stage=stage, files=tuple(files), meta=dict(meta))

    @property
    def digest(self) -> str:
        return digest_of(self.model_dump(mode="json"))

    def file(self, name: str) -> FileEntry:
        """Return the entry of the file `name`. Raises NotFound."""
        for entry in self.files:
            if entry.name == name:
                return entry
        names = ", ".join(entry.name for entry in self.files)
        raise NotFound(f"Artifact {self.artifact} has no file '{name}'. Its files: {names}.")

    def check_sizes(self, folder: Path) -> None:
        """Raise CorruptArtifact if the local folder lacks a file of the manifest, or a file has another size."""
        for entry in self.files:
            path = folder / entry.name
            try:  # Another process may delete the folder at any time.
                size = path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                raise mismatch(str(path)) from None
            if size != entry.size or not path.is_file():
                raise mismatch(str(path))


class ManifestRef(_Value):
    """The folder of a manifest, relative to the storage root, and the digest that the manifest must have."""

    folder: str
    digest: str


def mismatch(file: str) -> CorruptArtifact:
    """Return the error for a file that differs from its manifest."""
    return CorruptArtifact(
        f"The file {file} does not match its manifest. Restore the file from a backup, or clone the job that wrote it: "
        "tlm clone JOB."
    )
