"""State of file transfers and event streams, which both clients share."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import httpx
from httpx_sse import ServerSentEvent

from tlm_client.http import BYTES
from tlm_core.artifacts import NO_SPACE, FileEntry, sha256_file, storage_errors
from tlm_core.errors import CorruptArtifact, Fault, InvalidDataset, InvalidRequest, Unavailable
from tlm_core.wire import JsonObject, Upload

_OF_MODELS = ("model", "linear", "ngrams.json")  # files and folders that only some models have
JOB_MARK = ".tlm-job"  # a file in the folder of a model, with the id of the job and the names of the model's files
# Larger files are uploaded in parts, so that a broken connection costs one part.
RESUMABLE_BYTES = 64 << 20
_PART_BYTES = 8 << 20
_BLOCK_BYTES = 64 << 10
_TRIES_BEFORE_REPORT = 15  # to lock a folder: most waits end within 3 s
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 5.0


@contextmanager
def local_errors(action: str) -> Iterator[None]:
    """Raise StorageFull or InvalidRequest for an OSError inside the block. action: such as "reading FILE"."""
    with storage_errors(action):
        try:
            yield
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            raise InvalidRequest(f"Failed {action}: {error}. Check the path and its permissions.") from error


@dataclass(frozen=True)
class FileProgress:
    """How many bytes of a file are transferred.

    skipped: whether the file was complete before the download. waits: whether another download uses the folder.
    """

    name: str
    done: int
    size: int
    skipped: bool = False
    waits: bool = False


OnBytes = Callable[[FileProgress], None]


class Download:
    """One file that is downloaded into a folder.

    The file gets its name only when it is complete. Until then, the bytes are in a partial file whose name contains
    the digest, so a later download resumes the partial file only if the content is the same.
    """

    def __init__(self, file: FileEntry, folder: Path, on_bytes: OnBytes | None) -> None:
        self.file = file
        self.target = folder / _relative(file.name)
        self._partial = self.target.with_name(f"{self.target.name}.{file.sha256[:16]}.part")
        self._on_bytes = on_bytes
        self._lock_tries = 0

    def lock(self, stack: ExitStack) -> bool:
        """Lock the file's folder until `stack` closes. Return False if another download has locked it.

        Without the lock, two downloads would write to one partial file. After some tries, report the other download.
        """
        self._lock_tries += 1
        self.target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.target.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if self._lock_tries == _TRIES_BEFORE_REPORT:
                self._report(max(0, self.done), waits=True)
            return False
        except OSError:  # Some network file systems have no locks of folders.
            pass
        stack.callback(os.close, descriptor)
        return True

    def exists(self) -> bool:
        """Return whether the complete file is in the folder. If it is, report the file as skipped."""
        if not _holds(self.target, self.file):
            return False
        self._report(self.file.size, skipped=True)
        return True

    @property
    def done(self) -> int:
        """Bytes in the partial file; -1 if there is no such file."""
        return self._partial.stat().st_size if self._partial.exists() else -1

    def is_complete(self) -> bool:
        if self.done > self.file.size:
            self._partial.unlink()
        return self.done == self.file.size

    def headers(self) -> dict[str, str]:
        """Return the headers that request the missing bytes, or the whole file if its content changed."""
        headers = {"Accept-Encoding": "identity"}
        if self.done > 0:
            headers |= {"Range": f"bytes={self.done}-", "If-Range": f'"{self.file.sha256}"'}
        return headers

    @contextmanager
    def opened(self, response: httpx.Response) -> Iterator[Callable[[bytes], None]]:
        """Yield a function that writes the partial file. Raises CorruptArtifact for a wrong range or too many bytes."""
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        if resumed and not response.headers.get("content-range", "").startswith(f"bytes {self.done}-"):
            raise CorruptArtifact(f"The gateway sent the wrong range of {self.file.name}. Download again.")
        with open(self._partial, "ab" if resumed else "wb") as handle:

            def write(block: bytes) -> None:
                handle.write(block)
                if handle.tell() > self.file.size:
                    raise CorruptArtifact(f"The gateway sent too many bytes of {self.file.name}. Download again.")
                self._report(handle.tell())

            yield write

    def publish(self) -> bool:
        """Give the complete file its name. If its digest is wrong, delete the file and return False."""
        if sha256_file(self._partial) != self.file.sha256:
            self._partial.unlink()
            return False
        os.replace(self._partial, self.target)
        return True

    def _report(self, done: int, *, skipped: bool = False, waits: bool = False) -> None:
        if self._on_bytes is not None:
            self._on_bytes(FileProgress(self.file.name, done, self.file.size, skipped, waits))


def claim_folder(folder: Path, job_id: str, files: Sequence[FileEntry]) -> None:
    """Mark the folder as the folder of a job. The mark remains if the download is interrupted.

    files: the files of the job's model. Raises InvalidRequest if the folder holds files of another model. Ignores
    unrelated files. A folder of this job may hold damaged files, and the linear model that the job returned first.
    """
    mark, own = folder / JOB_MARK, {file.name: file for file in files}
    with local_errors(f"reading {folder}"):
        job, *recorded = mark.read_text(encoding="utf-8").split("\n") if mark.is_file() else [""]
        names = own.keys() | recorded if job == job_id else own.keys()
        others = sorted(_names_of_models(folder) - names)
        if not others and job != job_id:
            paths = {name: folder / _relative(name) for name in own}
            others = [name for name, path in paths.items() if path.is_file() and not _holds(path, own[name])]
    if others:
        listed = ", ".join(others[:3])
        raise InvalidRequest(f"The folder {folder} holds files of another model: {listed}. Name an empty folder.")
    with local_errors(f"writing {mark}"):
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text("\n".join((job_id, *sorted(names))), encoding="utf-8")


def _holds(path: Path, file: FileEntry) -> bool:
    """Return whether `path` is a file with the size and the digest of `file`."""
    return path.is_file() and path.stat().st_size == file.size and sha256_file(path) == file.sha256


def _names_of_models(folder: Path) -> set[str]:
    """Return the names of the complete files that belong to a model in the folder, such as `model/config.json`."""
    paths = (path for part in _OF_MODELS for path in (folder / part, *(folder / part).rglob("*")))
    return {path.relative_to(folder).as_posix() for path in paths if path.is_file() and path.suffix != ".part"}


def _relative(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
        raise CorruptArtifact(
            f"The gateway sent the file name '{name}', which lies outside of the target folder. Report this error to "
            "the operator."
        )
    return path


def total_size(files: Sequence[tuple[str | None, Path]]) -> int:
    """Return the bytes of all files. Raises InvalidRequest for a path that is not a file."""
    for _, file in files:
        check_is_file(file)
    return sum(file.stat().st_size for _, file in files)


def announcements(files: Sequence[tuple[str | None, Path]]) -> list[JsonObject]:
    """Return a dict of name, size and sha256 for each file. files: split (None for a corpus) and path of each file.

    Raises InvalidDataset with one fault for each empty file, and InvalidRequest for a file that cannot be read.
    """
    faults = [
        Fault("empty_file", f"File {file.name} is empty. Fill it or remove it.", split)
        for split, file in files
        if not file.stat().st_size
    ]
    if faults:
        raise InvalidDataset(faults[0].message, faults)
    with local_errors("reading the files"):
        return [{"name": file.name, "size": file.stat().st_size, "sha256": sha256_file(file)} for _, file in files]


def check_is_file(path: Path) -> None:
    """Raise InvalidRequest if `path` does not exist, or is a folder, a pipe or a device."""
    if not path.exists():
        raise InvalidRequest(f"The file {path} does not exist. Check the path.")
    if not path.is_file():
        raise InvalidRequest(f"{path} is a folder, a pipe or a device. Name a file.")


class FormFile(io.IOBase):
    """A file of a form. The file is open only while httpx sends it, because a form can have thousands of files.

    httpx reads the size with `seek`. `read` raises InvalidRequest if the size of the file has changed.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, path.stat().st_size
        self._blocks: Iterator[bytes] = iter(())

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._blocks = self._read()
        return self._size if whence == os.SEEK_END else offset

    def read(self, _size: int) -> bytes:
        return next(self._blocks, b"")

    def _read(self) -> Iterator[bytes]:
        left = self._size
        with local_errors(f"reading {self._path}"), open(self._path, "rb") as handle:
            while (block := handle.read(_BLOCK_BYTES)) and (left := left - len(block)) >= 0:
                yield block
        if left:
            raise _changed(self._path, "shorter" if left > 0 else "longer")


def _changed(file: object, change: str) -> InvalidRequest:
    return InvalidRequest(f"The file {file} became {change} during the upload. Upload it again.")


def next_part(handle: IO[bytes], upload: Upload) -> tuple[bytes, dict[str, str]]:
    """Return the bytes and the headers of the part of `handle` that the gateway expects next.

    The part is empty if the upload is complete. Raises InvalidRequest if the file has become too short. Ignores the
    bytes of a file that has become longer, because the gateway verifies the digest.
    """
    handle.seek(upload.offset)
    part = handle.read(min(_PART_BYTES, upload.part_bytes, upload.size - upload.offset))
    if not part and upload.offset < upload.size:
        raise _changed(handle.name, "shorter")
    last = upload.offset + len(part) - 1
    return part, {"Content-Range": f"bytes {upload.offset}-{last}/{upload.size}", "Content-Type": BYTES}


class Stream:
    """Position and delays of one event stream over several connections.

    after: `seq` or id of the last known event. patience: seconds without data after which Unavailable is raised.
    """

    def __init__(self, after: str, patience: float, clock: Callable[[], float]) -> None:
        self._after = after
        self._patience = patience
        self._clock = clock
        self._response: httpx.Response | None = None
        self._delay, self._last_data = _FIRST_DELAY, clock()

    def headers(self) -> dict[str, str]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        return headers | ({"Last-Event-ID": self._after} if _order(self._after) > (0,) else {})

    def connected(self, response: httpx.Response) -> None:
        self._response = response

    def body_of(self, event: ServerSentEvent) -> JsonObject | None:
        """Return the JSON of an event, or None for an event that has no data or came over an earlier connection."""
        self._received()
        if not event.data:
            return None
        body: JsonObject = event.json()
        number = body.get("seq", body.get("id"))
        if number is not None:
            if _order(str(number)) <= _order(self._after):
                return None
            self._after = str(number)
        return body

    def next_delay(self, reason: str) -> float:
        """Return the seconds until the next connection. Raises Unavailable after `patience` seconds without data."""
        if self._response is not None and self._response.num_bytes_downloaded:
            self._received()
        self._response = None
        if self._clock() - self._last_data > self._patience:
            raise Unavailable(
                f"No data from the gateway for {self._patience:.0f} s. {reason} Watch the job again later."
            )
        delay, self._delay = self._delay, min(2 * self._delay, _LONGEST_DELAY)
        return delay

    def _received(self) -> None:
        self._delay, self._last_data = _FIRST_DELAY, self._clock()


def _order(number: str) -> tuple[int, ...]:
    """Return the sort key of a number such as `7`, or of an id such as `1700000000000-3`."""
    return tuple(int(part) for part in number.split("-"))
