"""Rows and paragraphs of single files, read as a stream, with every fault by file and row."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from tlm_core.errors import Fault, InvalidDataset, StorageUnavailable
from tlm_core.parquet import open_parquet
from tlm_core.tasks.delimited import SAMPLE_CHARS, guess_delimiter

MOST_FAULTS = 100
LONGEST_RECORD = 64 << 20
TEXT_COLUMNS = (
    "text",
    "content",
    "body",
    "passage",
    "abstract",
    "document",
    "article",
    "contents",
    "raw_content",
    "sentence",
    "paragraph",
    "description",
    "summary",
)
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "plain",
    ".md": "plain",
    ".rst": "plain",
}
_PACKED = (".gz", ".zst")
_PIECE = 1 << 16

Say = Callable[[str], None]


class Row(NamedTuple):
    """One record: `number` counts from 1 without the header; the others are as found, None where missing."""

    number: int
    text: object
    source: object
    id: object
    rank: object = None


class Faults:
    """Collects what is wrong in the files, so that one run names all of it. where: of what, for the message."""

    def __init__(self, where: str = "the corpus files") -> None:
        self._where = where
        self._found: list[Fault] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, file: str, code: str, message: str, row: int | None = None, column: str | None = None) -> None:
        """Note one fault. Raises InvalidDataset when there are too many to go on."""
        place = file if row is None else f"{file}, row {row}"
        self._found.append(Fault(code, f"{place}: {message}", row=row, column=column))
        if len(self._found) >= MOST_FAULTS:
            self.check()

    def check(self) -> None:
        """Raises InvalidDataset with all faults, if there are any."""
        if self._found:
            count = "1 fault" if len(self._found) == 1 else f"{len(self._found)} faults"
            raise InvalidDataset(f"{count} in {self._where}; the first: {self._found[0].message}", self._found)


def format_of(path: Path) -> str | None:
    """`jsonl`, `csv`, `tsv`, `parquet`, `plain`, or None for a file that is no text we know."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in _PACKED
    if packed:
        suffixes.pop()
    found = _FORMATS.get(suffixes[-1]) if suffixes else None
    return None if packed and found == "parquet" else found


def choose_text_column(names: Sequence[str], asked: str | None, say: Say) -> str:
    """Name of the column with the texts: the one asked for, `text`, a usual name, or the only one.

    Says so when it guesses. Raises ValueError with a sentence for people.
    """
    listed = ", ".join(f"'{name}'" for name in names) or "none"
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the column '{doubled[0]}' occurs twice; rename one of them")
    wanted = [asked] if asked else TEXT_COLUMNS
    by_fold = {name.strip().casefold(): name for name in reversed(names)}
    for candidate in wanted:
        name = by_fold.get(candidate.casefold())
        if name is not None:
            if name != "text" and not asked:
                say(f"no column 'text' among {listed}; taking '{name}'")
            return name
    rest = [name for name in names if name.strip().casefold() not in ("id", "source", "rank")]
    if len(rest) == 1 and not asked:
        say(f"no column 'text' among {listed}; taking '{rest[0]}', the only one")
        return rest[0]
    raise ValueError(f"no column '{asked or 'text'}'; the columns are {listed}. Rename one or name the column to read")


def read_rows(path: Path, text_column: str | None, say: Say, faults: Faults) -> Iterator[Row]:
    """The records of a jsonl, csv, tsv or parquet file. What is wrong with the file goes to `faults`."""
    kind = format_of(path)

    def say_name(message: str) -> None:
        say(f"{path.name}: {message}")

    if kind == "parquet":
        yield from _parquet(path, text_column, say_name, faults)
        return
    with open_binary(path) as handle:
        lines = _lines(handle, path.name, faults)
        if kind == "jsonl":
            yield from _jsonl(lines, path.name, text_column, say_name, faults)
        else:
            yield from _delimited(lines, path.name, kind == "tsv", text_column, say_name, faults)


def read_paragraphs(path: Path, faults: Faults) -> Iterator[str]:
    """The paragraphs of a plain text: what lies between blank lines, in pieces where that is very long."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    held: list[str] = []
    size = number = 0
    with open_binary(path) as handle:
        while piece := _read_line(handle, _PIECE, path.name, faults):
            number += piece.endswith(b"\n")
            try:
                line = decoder.decode(piece)
            except UnicodeDecodeError as error:
                faults.add(path.name, "not_utf8", _not_utf8(error), row=number)
                return
            held.append(line)
            size += len(line)
            if size >= _PIECE or (not line.strip() and line.endswith("\n")):
                yield "".join(held)
                held, size = [], 0
    yield "".join(held)


def open_binary(path: Path) -> IO[bytes]:
    """`path` for reading, unpacked on the way if it ends in .gz or .zst. Raises StorageUnavailable."""
    try:
        if path.suffix.lower() == ".gz":
            return io.BufferedReader(gzip.open(path, "rb"))
        if path.suffix.lower() == ".zst":
            return io.BufferedReader(_Zstd(path.open("rb")))
        return open(path, "rb")
    except OSError as error:
        raise StorageUnavailable(f"{path} cannot be opened: {error.strerror}; check that it may be read") from error


class _Zstd(io.RawIOBase):
    """Unpacked bytes of a zstd file; unlike the library's reader it notices a file that was cut off."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file = file
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            # Small bites, as a few bytes can unpack to very many.
            packed = (self._frame.unused_data if self._frame is not None and self._frame.eof else b"") or (
                self._file.read(4096)
            )
            if self._frame is None or (self._frame.eof and packed):
                self._frame = self._new()
            if not packed:
                if not self._frame.eof:
                    raise EOFError("the file ends within a frame")
                return 0
            try:
                self._ready = memoryview(self._frame.decompress(packed))
            except self._error as error:
                raise EOFError(str(error)) from error
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_line(handle: IO[bytes], limit: int, name: str, faults: Faults) -> bytes:
    try:
        return handle.readline(limit)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        faults.add(name, "not_unpackable", f"cannot be unpacked ({error}); compress the file again")
        return b""
    except OSError as error:
        raise StorageUnavailable(f"{name} cannot be read: {error.strerror}; try again") from error


def _lines(handle: IO[bytes], name: str, faults: Faults) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers from 1; stops at what is not UTF-8 or too long."""
    number = 0
    while line := _read_line(handle, LONGEST_RECORD, name, faults):
        number += 1
        if len(line) == LONGEST_RECORD and not line.endswith(b"\n"):
            faults.add(name, "too_long", f"line {number} is longer than {LONGEST_RECORD >> 20} MiB; split it up")
            return
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            faults.add(name, "not_utf8", f"line {number}: {_not_utf8(error)}")
            return


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02X} is not UTF-8; save the file as UTF-8"


def _jsonl(
    lines: Iterator[tuple[int, str]], name: str, text_column: str | None, say: Say, faults: Faults
) -> Iterator[Row]:
    column: str | None = None
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
            faults.add(name, "not_json", f"no JSON object: {reason}; write one object a line", row=number)
            continue
        if not isinstance(record, dict):
            faults.add(name, "not_json", 'no JSON object; write one object a line, like {"text": "…"}', row=number)
            continue
        if column is None:
            try:
                column = choose_text_column(list(record), text_column, say)
            except ValueError as error:
                faults.add(name, "no_text_column", str(error), row=number)
                return
        if column not in record:
            faults.add(name, "missing_text", f"no '{column}', which earlier rows have", row=number, column=column)
            continue
        yield Row(number, record[column], record.get("source"), record.get("id"), record.get("rank"))


def _delimited(
    lines: Iterator[tuple[int, str]], name: str, tab_first: bool, text_column: str | None, say: Say, faults: Faults
) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_RECORD))
    delimiter, texts = _with_delimiter((line for _, line in lines), tab_first, say)
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    number = 0
    try:
        header = next(reader, None)
        if header is None:
            return
        column = choose_text_column(header, text_column, say)
        places = [header.index(c) if c in header else None for c in (column, "source", "id", "rank")]
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) != len(header):
                message = f"{len(cells)} cells under a header of {len(header)}; quote cells that hold '{delimiter}'"
                faults.add(name, "wrong_width", message, row=number)
                continue
            yield Row(number, *(None if at is None else cells[at] for at in places))
    except csv.Error as error:
        faults.add(name, "not_csv", f"{error}; check the quotes near this row", row=number + 1)
    except ValueError as error:
        faults.add(name, "no_text_column", str(error))


def _with_delimiter(lines: Iterator[str], tab_first: bool, say: Say) -> tuple[str, Iterator[str]]:
    """The delimiter, guessed by the first lines as that of a data set is, and all lines."""
    head: list[str] = []
    size = 0
    for line in lines:
        head.append(line)
        size += len(line)
        if size >= SAMPLE_CHARS:
            break
    sample = "".join(head)[:SAMPLE_CHARS]
    delimiter, reason = guess_delimiter(sample, tab_first=tab_first, whole=size < SAMPLE_CHARS)
    if delimiter != ("\t" if tab_first else ","):
        say(f"the delimiter is {delimiter!r}: {reason}")
    return delimiter, chain(head, lines)


def _parquet(path: Path, text_column: str | None, say: Say, faults: Faults) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    try:
        with open_parquet(path) as file:
            names = file.schema_arrow.names
            column = choose_text_column(names, text_column, say)
            read = [column, *(name for name in ("source", "id", "rank") if name in names and name != column)]
            for batch in file.iter_batches(batch_size=1000, columns=read):
                values = {name: batch.column(name).to_pylist() for name in read}
                none = [None] * batch.num_rows
                others = (values.get(name, none) for name in ("source", "id", "rank"))
                for cells in zip(values[column], *others, strict=True):
                    number += 1
                    yield Row(number, *cells)
    except pa.ArrowInvalid as error:
        faults.add(path.name, "not_parquet", f"cannot be read after row {number} ({error}); write the file again")
    except OSError as error:
        faults.add(path.name, "not_parquet", f"cannot be read after row {number} ({error}); write the file again")
    except ValueError as error:
        faults.add(path.name, "no_text_column", str(error))
