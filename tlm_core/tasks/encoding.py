"""Which encoding a text file has, and opening it so that nothing is lost without a word."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

_BLOCK = 1 << 20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# A byte that cannot be decoded becomes one of these code points under "surrogateescape".
_ESCAPED = re.compile("[\udc80-\udcff]")
_GOOD = re.compile("[^\x00-\x7f\udc80-\udcff]")


@dataclass(frozen=True)
class Encoding:
    """name: codec. damaged: bytes that do not fit are kept as lone surrogates, to be found row by row.

    note: what the user should know about it, or None.
    """

    name: str
    damaged: bool = False
    note: str | None = None


def open_bytes(path: Path) -> IO[bytes]:
    """Binary reader of a file, unpacked if it starts like gzip."""
    with open(path, "rb") as handle:
        packed = handle.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else open(path, "rb")


def open_text(path: Path, encoding: Encoding, *, newline: str) -> IO[str]:
    """Text reader; line ends are left as they are, lines end at `newline` ("": any line end)."""
    errors = "surrogateescape" if encoding.damaged else "strict"
    return io.TextIOWrapper(io.BufferedReader(open_bytes(path), _BLOCK), encoding.name, errors=errors, newline=newline)  # type: ignore[type-var]


def detect(path: Path) -> Encoding:
    """The encoding of a text file, from its byte order mark or by decoding all of it.

    UTF-8 if every byte fits; a file that is mostly UTF-8 is *damaged* UTF-8, not another encoding; what is
    left is Western single-byte text. Raises UnicodeDecodeError if the mark does not hold.
    """
    with open_bytes(path) as handle:
        start = handle.read(4)
    for mark, name in _MARKS:
        if start.startswith(mark):
            if name != "utf-8-sig":
                _decode(path, name)
                return Encoding(name, note=f"read as {name.upper()}, as its byte order mark says")
            return Encoding(name, damaged=not _is_utf8(path), note="a byte order mark at its start was left out")
    return Encoding("utf-8") if _is_utf8(path) else _not_utf8(path)


def _decode(path: Path, name: str) -> None:
    decoder = codecs.getincrementaldecoder(name)()
    with open_bytes(path) as handle:
        while block := handle.read(_BLOCK):
            decoder.decode(block)
        decoder.decode(b"", final=True)


def _is_utf8(path: Path) -> bool:
    try:
        _decode(path, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _not_utf8(path: Path) -> Encoding:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    good = bad = 0
    tail = ""
    with open_bytes(path) as handle:
        while block := handle.read(_BLOCK):
            text = decoder.decode(block)
            good += len(_GOOD.findall(text))
            bad += len(_ESCAPED.findall(text))
        tail = decoder.decode(b"", final=True)
    cut_at_end = bad == 0 and tail != ""
    if good >= bad + len(tail) or cut_at_end:
        return Encoding("utf-8", damaged=True)
    return _western(path)


def _western(path: Path) -> Encoding:
    try:
        _decode(path, "cp1252")
        name = "cp1252"
    except UnicodeDecodeError:  # five bytes mean nothing in cp1252; Latin-1 knows every byte
        name = "latin-1"
    with open_text(path, Encoding(name), newline="") as handle:
        number, line = next((number, line) for number, line in enumerate(handle, start=1) if not line.isascii())
    first = next(index for index, char in enumerate(line) if ord(char) > 127)
    sample = line[max(0, first - 15) : first + 15].strip()
    note = f"not UTF-8; read as {name}, by which line {number} has {sample!r}. If that is wrong, save it as UTF-8"
    return Encoding(name, note=note)


def ends_with_newline(path: Path, encoding: Encoding) -> bool:
    """Whether the file's last line is ended, which a file cut half-way seldom is."""
    last = ""
    with open_text(path, encoding, newline="") as handle:
        while block := handle.read(1 << 20):
            last = block[-1]
    return last in ("\n", "\r")
