"""Receiving files: a multipart body goes from the connection to disk piece by piece, under names we choose."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from tlm_core.artifacts import storage_errors
from tlm_core.errors import InvalidRequest

_FLUSH_BYTES = 1 << 20
_MAX_FIELD_BYTES = 64 * 1024
_MAX_FILES = 10_000
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ReceivedFile:
    """One uploaded file. field: of the form; name: the sender's, made harmless; path: where it lies; size in bytes;
    named: whether the sender named it at all."""

    field: str
    name: str
    path: Path
    size: int
    named: bool = True


@dataclass(frozen=True)
class Upload:
    """A form that came to its end."""

    fields: dict[str, str]
    files: tuple[ReceivedFile, ...]

    def field(self, name: str, default: str | None = None) -> str:
        """A text of the form. Raises InvalidRequest if it is required and missing."""
        value = self.fields.get(name, default)
        if value is None:
            raise InvalidRequest(f"the form lacks the field '{name}'")
        return value

    def chosen(self) -> tuple[ReceivedFile, ...]:
        """The files, but for those without name and content: browsers send one for each box that was left empty."""
        return tuple(file for file in self.files if file.named or file.size)


@asynccontextmanager
async def received(
    request: Request, scratch: Path, *, max_bytes: int, fields: Collection[str], files: Collection[str]
) -> AsyncIterator[Upload]:
    """The form that `request` carries; its files are gone when the block ends, whatever happened in it.

    fields, files: names that the form may use, as regular expressions. Raises InvalidRequest, StorageFull,
    HTTPException 413 or 415, and ClientDisconnect for an upload that was cut.
    """
    folder = scratch / "uploads" / uuid.uuid4().hex
    with storage_errors("receiving the upload"):
        folder.mkdir(parents=True)
    form = _Form(folder, max_bytes, fields, files)
    try:
        yield await form.receive(request)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Part:
    """One part of the form while it is read: a text, or a file, of `size` bytes so far."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    text: bytearray = field(default_factory=bytearray)
    file_name: str | None = None
    named: bool = False
    path: Path | None = None
    size: int = 0


class _Form:
    def __init__(self, folder: Path, max_bytes: int, fields: Collection[str], files: Collection[str]) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._field_names = fields
        self._file_names = files
        self._part = _Part()
        self._header = (b"", b"")
        self._ended = False
        self._texts: dict[str, str] = {}
        self._files: list[_Part] = []
        self._pending: list[tuple[Path, bytes]] = []
        self._pending_bytes = 0

    async def receive(self, request: Request) -> Upload:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise HTTPException(415, "send the files as multipart/form-data")
        try:
            if int(request.headers.get("content-length", "0")) > self._max_bytes:
                raise self._too_large()
            await self._read(request, options[b"boundary"])
        except FormParserError as error:
            raise InvalidRequest(f"the multipart body is broken: {error}; send it again") from error
        if not self._ended:
            raise InvalidRequest("the upload ends before its last boundary; send it again")
        return Upload(self._texts, tuple(self._received(part) for part in self._files))

    async def _read(self, request: Request, boundary: bytes) -> None:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self._max_bytes:
                raise self._too_large()
            parser.write(chunk)
            if self._pending_bytes >= _FLUSH_BYTES:
                await run_in_threadpool(self._flush)
        await run_in_threadpool(self._flush)
        parser.finalize()

    def _flush(self) -> None:
        with storage_errors("receiving the upload"):
            # One file is open at a time, however many small ones have come.
            for path, pieces in groupby(self._pending, key=itemgetter(0)):
                path.parent.mkdir(exist_ok=True)
                with open(path, "ab") as handle:
                    handle.writelines(data for _, data in pieces)
        self._pending.clear()
        self._pending_bytes = 0

    @staticmethod
    def _received(part: _Part) -> ReceivedFile:
        assert part.path is not None and part.file_name is not None
        return ReceivedFile(part.name, part.file_name, part.path, part.size, part.named)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413, f"the upload is larger than {self._max_bytes:,} bytes, the most that is taken at once"
        )

    # --- callbacks of the parser ----------------------------------------------------------------------------------

    def _on_part_begin(self) -> None:
        self._part = _Part()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0] + data[start:end], self._header[1])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header = (self._header[0], self._header[1] + data[start:end])

    def _on_header_end(self) -> None:
        name, value = self._header
        self._part.headers[name.lower()] = value
        self._header = (b"", b"")

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition", b""))
        part = self._part
        part.name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in options:
            self._check_name(part.name, self._field_names, "field")
            return
        self._check_name(part.name, self._file_names, "file")
        if len(self._files) >= _MAX_FILES:
            raise InvalidRequest(f"more than {_MAX_FILES} files in one upload; pack them together")
        taken = {other.file_name for other in self._files}
        part.named = bool(options[b"filename"])
        part.file_name = harmless(options[b"filename"].decode("utf-8", "replace"), taken)
        # In a folder of its own it keeps its name, by which faults are told and its type is known.
        part.path = self._folder / f"{len(self._files):05d}" / part.file_name
        self._files.append(part)
        self._pending.append((part.path, b""))  # so that an empty file is there, too

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part, piece = self._part, data[start:end]
        if part.path is not None:
            part.size += len(piece)
            self._pending.append((part.path, piece))
            self._pending_bytes += len(piece)
            return
        part.text += piece
        if len(part.text) > _MAX_FIELD_BYTES:
            raise InvalidRequest(f"the field '{part.name}' is longer than {_MAX_FIELD_BYTES} bytes")

    def _on_part_end(self) -> None:
        part = self._part
        if part.path is None:
            try:
                self._texts[part.name] = part.text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InvalidRequest(f"the field '{part.name}' is not UTF-8") from error

    def _on_end(self) -> None:
        self._ended = True

    def _check_name(self, name: str, known: Collection[str], what: str) -> None:
        if not any(re.fullmatch(one, name) for one in known):
            listed = ", ".join(sorted(known)) or "none"
            raise InvalidRequest(f"the form has a {what} '{name[:100]}' that is not known; {what}s are: {listed}")
        if what == "field" and name in self._texts:
            raise InvalidRequest(f"the form gives the field '{name}' twice")


def harmless(name: str, taken: Collection[str | None] = ()) -> str:
    """A file name without folders and odd characters that is not `taken`; its endings are kept."""
    base = _UNSAFE.sub("_", name.replace("\\", "/").rsplit("/", 1)[-1]).lstrip(".-")[-100:] or "file"
    stem, dot, endings = base.partition(".")
    count = 1
    while base in taken:
        count += 1
        base = f"{stem}-{count}{dot}{endings}"
    return base


def single(files: Sequence[ReceivedFile]) -> dict[str, ReceivedFile]:
    """Files by their field. Raises InvalidRequest when a field holds two."""
    found: dict[str, ReceivedFile] = {}
    for one in files:
        if one.field in found:
            raise InvalidRequest(f"the form gives the file '{one.field}' twice; join the files or leave one out")
        found[one.field] = one
    return found
