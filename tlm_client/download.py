"""Fetching one file of a result: goes on where it was cut, checks the digest, and appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx

from tlm_client.steps import Ask, Open, Read, Sleep, refused
from tlm_core.artifacts import FileEntry, sha256_file, storage_errors
from tlm_core.errors import CorruptArtifact, Unavailable

_TRIES = 6


@dataclass(frozen=True)
class Part:
    """How far the download of one file is, in bytes."""

    name: str
    done: int
    size: int


def fetch_file(
    path: str, file: FileEntry, folder: Path, *, on_bytes: Callable[[Part], None] | None = None
) -> Ask[Path]:
    """`file`, served at `path`, below `folder`. What is there already with the right digest is not fetched again.

    Raises CorruptArtifact, StorageFull, StorageUnavailable, Unavailable, or what the gateway answers with.
    """
    target = folder / _inside(file.name)
    tell = on_bytes or (lambda _: None)
    with storage_errors(f"writing {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and target.stat().st_size == file.size and sha256_file(target) == file.sha256:
            tell(Part(file.name, file.size, file.size))
            return target
        # The name holds the digest: what an earlier download of other content has left is never continued.
        partial = target.with_name(f"{target.name}.{file.sha256[:16]}.part")
        for whole in (False, True):
            yield from _fetch(path, file, partial, tell)
            if sha256_file(partial) == file.sha256:
                os.replace(partial, target)
                return target
            partial.unlink()
            if whole:
                break
    raise CorruptArtifact(
        f"{file.name} does not match its SHA-256 after it was fetched twice; ask who runs the gateway"
    )


def fetch_archive(path: str, target: Path) -> Ask[Path]:
    """What is served at `path`, written to `target` once it is whole. Raises Unavailable if it was cut."""
    opened = yield Open("GET", path, {"Accept-Encoding": "identity"})
    if opened.status >= 400:
        raise (yield from refused(opened))
    partial, done = target.with_name(f"{target.name}.part"), 0
    with storage_errors(f"writing {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as handle:
            try:
                while (block := (yield Read())) is not None:
                    handle.write(block)
                    done += len(block)
            except httpx.TransportError as error:
                raise Unavailable(f"{target.name} was cut at byte {done:,}; download again") from error
        if done != int(opened.headers["content-length"]):
            raise Unavailable(f"{target.name} was cut at byte {done:,}; download again")
        os.replace(partial, target)
    return target


def _fetch(path: str, file: FileEntry, partial: Path, tell: Callable[[Part], None]) -> Ask[None]:
    """Bring `partial` to the full size; as long as bytes come, any number of cuts is borne."""
    idle = 0
    while True:
        before = _size(partial)
        if before > file.size:
            partial.unlink()
            continue
        if before == file.size and partial.exists():
            return
        try:
            yield from _transfer(path, file, partial, before, tell)
        except (httpx.TransportError, Unavailable) as error:
            idle = 0 if _size(partial) > before else idle + 1
            if idle >= _TRIES:
                raise Unavailable(
                    f"{file.name} cannot be fetched ({str(error) or type(error).__name__}); download again later: "
                    "it goes on where it stopped"
                ) from error
            yield Sleep(min(0.5 * 2**idle, 8.0))


def _transfer(path: str, file: FileEntry, partial: Path, start: int, tell: Callable[[Part], None]) -> Ask[None]:
    """One request, from byte `start` on if the gateway still serves the same content."""
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": f'"{file.sha256}"'}
    opened = yield Open("GET", path, headers)
    if opened.status >= 400:
        raise (yield from refused(opened))
    continued = opened.status == httpx.codes.PARTIAL_CONTENT
    if continued and not opened.headers.get("content-range", "").startswith(f"bytes {start}-"):
        raise CorruptArtifact(f"the gateway sent another range of {file.name} than it was asked for; download again")
    done = start if continued else 0
    with open(partial, "ab" if continued else "wb") as handle:
        # As they come: collected to larger blocks, the last of them would be lost when the connection breaks.
        while (block := (yield Read())) is not None:
            handle.write(block)
            done += len(block)
            if done > file.size:
                raise CorruptArtifact(f"the gateway sends more of {file.name} than its manifest says; download again")
            tell(Part(file.name, done, file.size))
    if done < file.size:
        raise httpx.ReadError(f"the answer ended at byte {done} of {file.size}")


def _inside(name: str) -> PurePosixPath:
    """The name as a relative path. Raises CorruptArtifact if it leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
        raise CorruptArtifact(f"the gateway names a file '{name}', which would lie outside of the folder")
    return path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
