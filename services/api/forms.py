"""Multipart forms. The reader writes files to disk under safe names, and holds text fields in memory."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from tlm_core.artifacts import storage_errors, temporary_folder
from tlm_core.errors import InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

    from services.api.parts import Parts

_MAX_FIELD_BYTES = 64 * 1024
_CHECKED_BYTES = 64 << 20  # bytes of a body between two checks of the free space
_MAX_FILES = 10_000
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass
class ReceivedFile:
    """An uploaded file of `size` bytes, which lies at `path`. field: the form field that contains the file.

    name: the sender's name of the file, without special characters. named: whether the sender gave the file a name.
    """

    field: str
    name: str
    path: Path
    size: int = 0
    named: bool = True


@dataclass
class Form:
    """A received form. fields: name → text of each text field. files: the uploaded files."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[ReceivedFile] = field(default_factory=list)

    def field(self, name: str, default: str | None = None) -> str:
        """Return the value of a text field. Raises InvalidRequest if it is missing and has no default."""
        value = self.fields.get(name, default)
        if value is None:
            raise InvalidRequest(f"The form field '{name}' is required. Send it.")
        return value

    def selected_files(self) -> list[ReceivedFile]:
        """Return the files, without the empty and nameless file that a browser sends for an empty file input."""
        return [file for file in self.files if file.named or file.size]


@asynccontextmanager
async def receive_form(
    parts: Parts, request: Request, *, fields: Collection[str], files: Collection[str]
) -> AsyncIterator[Form]:
    """Yield the form in the request body. Delete the files of the form after the block.

    fields, files: regular expressions of the allowed names of text fields and of file fields. Raises InvalidRequest,
    HTTPException 413 or 415, the errors of `Uploads.check_space`, and ClientDisconnect for an incomplete upload.
    """
    with temporary_folder(parts.settings.scratch / "uploads", "receiving the upload") as folder:
        yield await _read(parts, request, _FormReader(folder, fields, files))


async def _read(parts: Parts, request: Request, reader: _FormReader) -> Form:
    max_bytes, check_space = parts.settings.max_upload_bytes, parts.uploads.check_space
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type != b"multipart/form-data" or not options.get(b"boundary"):
        raise HTTPException(
            415,
            "The header Content-Type must be 'multipart/form-data; boundary=…'. Let your HTTP library set the header "
            "(curl: -F).",
        )
    length = int(request.headers.get("content-length", "0"))
    if length > max_bytes:
        raise _too_large(max_bytes)
    await run_in_threadpool(check_space, length)
    parser = MultipartParser(options[b"boundary"], reader.callbacks())
    size = checked = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            if size - checked >= _CHECKED_BYTES:
                checked = size
                await run_in_threadpool(check_space, max(0, length - size))
            with storage_errors("receiving the upload"):
                await run_in_threadpool(parser.write, chunk)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"Invalid multipart body: {error}. Let your HTTP library write it (curl: -F).") from error
    finally:
        reader.close()
    if not reader.complete:
        raise InvalidRequest("The multipart body ends before its last boundary. Send the form again.")
    return reader.form


class _FormReader:
    """The callbacks of the multipart parser, which fill `form`. At most one file is open at a time."""

    def __init__(self, folder: Path, fields: Collection[str], files: Collection[str]) -> None:
        self.form = Form()
        self.complete = False
        self._folder = folder
        self._patterns = {"text": fields, "file": files}
        self._header_name = self._header_text = self._disposition = b""
        self._field = ""
        self._text = bytearray()
        self._handle: IO[bytes] | None = None
        self._names = SafeNames()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _part_begin(self) -> None:
        self._disposition, self._text = b"", bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_text += data[start:end]

    def _header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_text
        self._header_name = self._header_text = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in options:
            self._check_name("text")
            if self._field in self.form.fields:
                raise InvalidRequest(f"The form field '{self._field}' occurs twice. Send it once.")
            return
        self._check_name("file")
        if len(self.form.files) >= _MAX_FILES:
            raise InvalidRequest(f"The upload has more than {_MAX_FILES:,} files. Combine them into fewer files.")
        name = self._names.add(options[b"filename"].decode("utf-8", "replace"))
        path = self._folder / f"{len(self.form.files):05d}" / name
        path.parent.mkdir()
        self._handle = path.open("wb")
        self.form.files.append(ReceivedFile(self._field, name, path, named=bool(options[b"filename"])))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._handle is not None:
            self.form.files[-1].size += self._handle.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _MAX_FIELD_BYTES:
            raise InvalidRequest(
                f"The form field '{self._field}' is longer than {_MAX_FIELD_BYTES:,} bytes. Shorten it."
            )

    def _part_end(self) -> None:
        if self._handle is not None:
            self.close()
            return
        try:
            self.form.fields[self._field] = self._text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"The form field '{self._field}' is not valid UTF-8. Encode it as UTF-8.") from error

    def _end(self) -> None:
        self.complete = True

    def _check_name(self, kind: str) -> None:
        patterns = self._patterns[kind]
        if not any(re.fullmatch(pattern, self._field) for pattern in patterns):
            # A pattern is a name, or a prefix and a range of letters. The message has NAME instead of the range.
            valid = ", ".join(re.sub(r"\[.*", "NAME", pattern) for pattern in sorted(patterns)) or "none"
            name = self._field[:100]
            raise InvalidRequest(f"The form has no {kind} field '{name}'. Valid {kind} fields: {valid}.")


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"The upload is larger than the limit of {max_bytes:,} bytes. Send less data.")


def safe_name(name: str) -> str:
    """Return a file name without folders and special characters: "my_data.csv.gz" for "dir/my data.csv.gz"."""
    return _UNSAFE.sub("_", name.replace("\\", "/").rsplit("/", 1)[-1]).lstrip(".-")[-100:] or "file"


class SafeNames:
    """A set of safe file names. All names differ, because error messages name the files."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}  # name → the highest number that was added to this name

    def add(self, name: str) -> str:
        """Return `safe_name(name)`. If an earlier file has this name, add a number: "train-2.csv"."""
        unique = base = safe_name(name)
        stem, dot, extensions = base.partition(".")
        while unique in self._last:
            self._last[base] += 1
            unique = f"{stem}-{self._last[base]}{dot}{extensions}"
        self._last[unique] = 1
        return unique


def by_field(files: Collection[ReceivedFile]) -> dict[str, ReceivedFile]:
    """Return form field → file. Raises InvalidRequest if a field has two files."""
    result: dict[str, ReceivedFile] = {}
    for file in files:
        if file.field in result:
            raise InvalidRequest(f"The form has two files in field '{file.field}'. Send one file per field.")
        result[file.field] = file
    return result
