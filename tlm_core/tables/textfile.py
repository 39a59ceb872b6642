"""Text files: decompression, encodings and lines."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

_PACKED = {".gz": "gzip", ".zst": "zstd"}
_MARKS_OF_PACKED = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"))
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The encodings that charset-normalizer may choose. It sometimes confuses cp1250 with cp1252, which is more common.
_LEGACY = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "koi8_r", "gb18030", "shift_jis", "euc_kr", "big5"]
_BLOCK = 1 << 20
_SAMPLED_LINES = 1_000
_EVIDENCE = 32  # number of bytes above 127 that charset-normalizer needs for a reliable choice
LONGEST_LINE = 1 << 26
# The error handler "surrogateescape" decodes an invalid byte to one of these code points.
UNDECODED = re.compile("[\udc80-\udcff]")
_DECODED = re.compile("[^\x00-\x7f\udc80-\udcff]")


class UnreadableFile(Exception):
    """The rest of a file cannot be read. `TableFile` converts this exception into a data error with `code`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Encoding:
    """The encoding of a text file. name: Python codec. damaged: whether invalid bytes become lone surrogates.

    strict: whether an invalid byte raises UnreadableFile. note: note for the user, or None.
    """

    name: str
    damaged: bool = False
    strict: bool = False
    note: str | None = None


UTF8 = Encoding("utf-8-sig", strict=True)


def name_without_packing(name: str) -> str:
    """Return the file name without .gz or .zst."""
    return name[: -len(suffix)] if (suffix := Path(name).suffix) and suffix.lower() in _PACKED else name


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file. Decompress it if its name or its first bytes indicate gzip or Zstandard. Raises OSError."""
    with open(path, "rb") as file:
        start = file.read(4)
    by_content = next((codec for mark, codec in _MARKS_OF_PACKED if start.startswith(mark)), None)
    codec = _PACKED.get(path.suffix.lower(), by_content)
    if codec is None:
        return open(path, "rb")
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression=codec), _BLOCK)


class Lines:
    """The lines of a text file, with their line breaks. number, last: number and text of the line that was read last.

    The iteration raises UnreadableFile for a line of more than LONGEST_LINE characters and, if the encoding is strict,
    for an invalid byte. piece: if set, longer lines are divided into texts of `piece` characters instead.
    """

    def __init__(self, path: Path, encoding: Encoding, *, piece: int | None = None) -> None:
        self._path, self._encoding, self._piece = path, encoding, piece
        self.number, self.last = 0, ""

    def __iter__(self) -> Iterator[str]:
        errors = "surrogateescape" if self._encoding.damaged or self._encoding.strict else "strict"
        with io.TextIOWrapper(open_bytes(self._path), self._encoding.name, errors=errors, newline="") as handle:
            while line := handle.readline(self._piece or LONGEST_LINE):
                self.number += 1
                self._check(line)
                self.last = line
                yield line

    def _check(self, line: str) -> None:
        place = f"line {self.number} of {self._path.name}"
        if self._piece is None and len(line) == LONGEST_LINE and not line.endswith("\n"):
            message = f"A record is too long: {place} has more than {LONGEST_LINE:,} characters. Write shorter lines."
            raise UnreadableFile("malformed_row", message)
        if self._encoding.strict and not line.isascii() and (byte := UNDECODED.search(line)):
            message = f"Byte 0x{ord(byte[0]) - 0xDC00:02X} in {place} is not UTF-8. Save the file as UTF-8."
            raise UnreadableFile("bad_encoding", message)

    @property
    def complete(self) -> bool:
        """Whether the line that was read last ends with a line break. The end of a truncated file rarely does."""
        return self.last.endswith(("\n", "\r"))


def detect_encoding(path: Path) -> Encoding:
    """Return the encoding of a text file.

    The encoding is that of the byte order mark, or UTF-8 if at least half of the text outside ASCII is valid UTF-8.
    Otherwise charset-normalizer chooses a legacy encoding. Raises UnicodeDecodeError if the bytes contradict a byte
    order mark of UTF-16 or UTF-32. Raises UnreadableFile for binary data.
    """
    with open_bytes(path) as handle:
        start = handle.read(4)
    for mark, name in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            if name != "utf-8-sig":
                _decode(path, name)
                return Encoding(name, note=f"read as {name.upper()} because of its byte order mark")
            return Encoding(name, damaged=not _fits(path, name), note="the byte order mark at its start is ignored")
    if _fits(path, "utf-8"):
        return Encoding("utf-8")
    return Encoding("utf-8", damaged=True) if _is_mostly_utf8(path) else _legacy(path)


def _decode(path: Path, name: str) -> None:
    decoder = codecs.getincrementaldecoder(name)()
    with open_bytes(path) as handle:
        while block := handle.read(_BLOCK):
            decoder.decode(block)
        decoder.decode(b"", final=True)


def _fits(path: Path, name: str) -> bool:
    try:
        _decode(path, name)
    except UnicodeDecodeError:
        return False
    return True


def _is_mostly_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    valid = invalid = 0
    with open_bytes(path) as handle:
        while block := handle.read(_BLOCK):
            text = decoder.decode(block)
            valid += len(_DECODED.findall(text))
            invalid += len(UNDECODED.findall(text))
        tail = decoder.decode(b"", final=True)
    cut_at_end = invalid == 0 and tail != ""
    return cut_at_end or valid >= invalid + len(tail)


def _legacy(path: Path) -> Encoding:
    from charset_normalizer import is_binary

    with open_bytes(path) as handle:
        if is_binary(handle.read(_BLOCK)):
            message = f"{path.name} has binary data instead of text. Save the table as CSV or JSON Lines."
            raise UnreadableFile("wrong_type", message)
    with open_bytes(path) as handle:
        lines = list(islice((pair for pair in enumerate(handle, 1) if not pair[1].isascii()), _SAMPLED_LINES))
    likely = _likely_encodings(b"".join(line for _, line in lines))
    name = next((name for name in likely if _fits(path, name)), "latin-1")
    number, line = lines[0][0], lines[0][1].decode(name, "replace")
    first = next(index for index, char in enumerate(line) if ord(char) > 127)
    sample = line[max(0, first - 15) : first + 15].strip()
    note = f"not UTF-8; read as {name}, which gives {sample!r} in line {number}. If that is wrong, save it as UTF-8"
    return Encoding(name, note=note)


def _likely_encodings(sample: bytes) -> list[str]:
    """Return the legacy encodings in which the sample is probably written, most probable first."""
    if sum(byte > 127 for byte in sample) < _EVIDENCE:
        return ["cp1252"]
    from charset_normalizer import from_bytes

    matches = list(from_bytes(sample, cp_isolation=_LEGACY))
    best = [match for match in matches if (match.chaos, match.coherence) == (matches[0].chaos, matches[0].coherence)]
    likely = [encoding for match in best for encoding in match.could_be_from_charset]
    return [*sorted(likely, key=lambda encoding: encoding != "cp1252"), "cp1252"]
