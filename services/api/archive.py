"""An artifact as one tar stream: nothing is held in memory or written, and equal artifacts give equal bytes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence

from fastapi.responses import StreamingResponse

from tlm_core.artifacts import ArtifactStore, FileEntry, ManifestRef

_BLOCK = 1 << 20
_RECORD = 512


def archive_of(artifacts: ArtifactStore, ref: ManifestRef, name: str) -> StreamingResponse:
    """The answer that sends all files of an artifact below the folder `name`. Raises CorruptArtifact, NotFound."""
    files = artifacts.manifest(ref).files
    artifacts.localize(ref)  # what is missing is told before the answer has begun
    size = sum(_RECORD + _padded(file.size) for file in files) + 2 * _RECORD
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f'attachment; filename="{name}.tar"',
        "ETag": f'"{ref.digest}.tar"',
        "Cache-Control": "private, no-transform",
    }
    return StreamingResponse(_stream(artifacts, ref, files, name), media_type="application/x-tar", headers=headers)


def _stream(artifacts: ArtifactStore, ref: ManifestRef, files: Sequence[FileEntry], name: str) -> Iterator[bytes]:
    for file in files:
        entry = tarfile.TarInfo(f"{name}/{file.name}")
        entry.size, entry.mode = file.size, 0o644
        yield entry.tobuf(tarfile.USTAR_FORMAT)
        with artifacts.open(ref, file.name) as handle:
            while block := handle.read(_BLOCK):
                yield block
        yield b"\0" * (_padded(file.size) - file.size)
    yield b"\0" * (2 * _RECORD)


def _padded(size: int) -> int:
    return -(-size // _RECORD) * _RECORD
