"""Read the records of CSV, TSV, JSON, JSON Lines and Parquet files one by one."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from tlm_core.errors import StorageUnavailable
from tlm_core.parquet import open_parquet
from tlm_core.tables.findings import Findings
from tlm_core.tables.textfile import (
    UTF8,
    Encoding,
    Lines,
    UnreadableFile,
    detect_encoding,
    name_without_packing,
    open_bytes,
)
from tlm_core.wording import counted

if TYPE_CHECKING:
    import pyarrow as pa

_FORMATS: Mapping[str, str] = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".csv": "delimited", ".tsv": "delimited", ".tab": "delimited",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
MAX_COLUMNS = 1_000  # columns of one file
_SAMPLE_CHARS = 1 << 18
_FIELD_LIMIT = 1 << 27
_BATCH = 64  # rows of Parquet in memory; a small file can repeat a value of a megabyte in each row
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive or an Excel sheet"),
    (b"\xd0\xcf\x11\xe0", "an old Excel sheet"),
    (b"%PDF", "a PDF"),
    (b"ARROW1", "an Arrow file"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ", "compressed with xz"),
)
SUPPORTED = "Supported types: jsonl, json, csv, tsv and parquet; all but parquet also as .gz or .zst."
EMPTY = "is empty. Add column names and records, or one JSON object per line."
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
# A JSON object becomes a tuple of its (key, value) pairs, because a dict would hide repeated keys.
_DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=lambda _name: None)

Record = tuple[int, dict[str, object]]
Reader = Callable[[Sequence[str] | None], Iterator[Record]]


class Unread(Enum):
    """The placeholder for a Parquet value that is no text, number or boolean. `value` names its type in messages."""

    NESTED = "list or object"
    TIME = "date or time"
    BYTES = "piece of binary data"


@dataclass(frozen=True)
class Records:
    """The records of one file.

    names: the columns of the file. For JSON, `names` is empty, because each object has keys of its own.
    read: yields (number from 1, {column: value}) for each record. The argument of `read` lists the columns to read from
    a Parquet file, or is None for all. damaged: whether lone surrogates in strings stand for invalid bytes.
    """

    names: Sequence[str]
    read: Reader
    damaged: bool = False


@dataclass
class TableFile:
    """A file with records. The methods add data errors to `findings`.

    delimiter, encoding, kind ("json", "delimited", "parquet"): if None, `open` infers the value from the file.
    max_bytes: limit on the size of the unpacked file. label: name of the file in messages.
    """

    path: Path
    findings: Findings
    split: str | None = None
    delimiter: str | None = None
    encoding: Encoding | None = None
    max_bytes: int | None = None
    label: str = ""
    kind: str | None = None

    def __post_init__(self) -> None:
        name = self.path.name
        if not self.label:
            self.label = name if self.split is None or self.split in name.lower() else f"{name} (split {self.split})"

    def fault(self, code: str, message: str, row: int | None = None, column: str | None = None) -> None:
        self.findings.fault(code, message, split=self.split, row=row, column=column)

    def open(self) -> Records | None:
        """Return the records. For an unreadable file, add a data error and return None. Raises StorageUnavailable."""
        records = None
        with self.errors_as_faults():
            records = self._open()
        return records

    @contextmanager
    def errors_as_faults(self) -> Iterator[None]:
        """Convert an error in the content of the file into a data error, and end the `with` block.

        Raises StorageUnavailable if the storage fails, and InvalidDataset if `findings` reaches its limit `stop_at`.
        """
        import pyarrow as pa

        try:
            yield
        except UnreadableFile as error:
            self.fault(error.code, str(error))
        except UnicodeDecodeError as error:
            message = f"{self.label} is not valid {error.encoding} ({error.reason}). Save it as UTF-8."
            self.fault("bad_encoding", message)
        except (OSError, pa.ArrowException) as error:
            if getattr(error, "errno", None):
                raise StorageUnavailable(
                    f"Cannot read {self.path}: {error}. Check the file and the storage, and try again."
                ) from error
            if "Truncated" in str(error):
                self.fault("cut_file", f"{self.label} is compressed and ends too early. Upload the whole file.")
            else:
                self.fault("unreadable_file", f"Cannot read {self.label} ({error}). Write or upload the file again.")

    def _open(self) -> Records | None:
        if self.kind is None:
            self.kind = self._infer_kind()
        if self.max_bytes is not None and any(size > self.max_bytes for size in itertools.accumulate(self._sizes())):
            limit = f"{self.max_bytes:,} bytes unpacked"
            message = f"{self.label} has more than {limit}. Use fewer rows or shorter texts."
            raise UnreadableFile("file_too_large", message)
        if self.kind == "parquet":
            return self._parquet()
        if self.encoding is None:
            self.encoding = detect_encoding(self.path)
            if self.encoding.note:
                self.findings.note(f"{self.label}: {self.encoding.note}")
        return self._json() if self.kind == "json" else self._delimited()

    def _infer_kind(self) -> str:
        """Return the format in the file name or, if the name has none, the format of the content.

        Raises UnreadableFile if the file is empty, or if the content contradicts the name.
        """
        with open_bytes(self.path) as handle:
            start = handle.read(1 << 16)
        if not start:
            raise UnreadableFile("empty_file", f"{self.label} {EMPTY}")
        named = format_of(self.path.name)
        foreign = next((kind for mark, kind in _FOREIGN if start.startswith(mark)), None)
        text = start.replace(b"\x00", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
        parquet, braces = start.startswith(b"PAR1"), text[:1] in (b"{", b"[")
        if foreign:
            raise UnreadableFile("wrong_type", f"{self.label} is {foreign}. {SUPPORTED}")
        if named is not None and parquet != (named == "parquet"):
            content = "is a Parquet file" if parquet else "is not a Parquet file"
            raise UnreadableFile("wrong_type", f"{self.label} {content}, contrary to its name. Rename it. {SUPPORTED}")
        if named == "json" and text and not braces:
            message = f"{self.label} does not begin with a JSON object. If it is CSV, name it .csv."
            raise UnreadableFile("wrong_type", message)
        if named == "delimited" and re.match(rb'\{\s*"[^"\n]*"\s*:', text):
            raise UnreadableFile("wrong_type", f"{self.label} begins with a JSON object. Name it .jsonl.")
        if named is None:
            named = "parquet" if parquet else "json" if braces else "delimited"
            self.findings.note(f"{self.label}: the name has no known type; the content is read as {named}")
        return named

    def _sizes(self) -> Iterator[int]:
        """Yield the unpacked size in bytes of each block. The sum is the unpacked size of the file."""
        if self.kind == "parquet":
            # The metadata of the file counts repeated values only once.
            yield from map(_unpacked_size, open_parquet(self.path).iter_batches(_BATCH))
            return
        with open_bytes(self.path) as handle:
            while block := handle.read(1 << 20):
                yield len(block)

    def _records(self, names: Sequence[str], produce: Reader) -> Records:
        def read(columns: Sequence[str] | None) -> Iterator[Record]:
            with self.errors_as_faults():
                yield from produce(columns)

        return Records(names, read, self.kind == "parquet" or (self.encoding is not None and self.encoding.damaged))

    def _lines(self) -> Lines:
        return Lines(self.path, self.encoding or UTF8)

    def _parquet(self) -> Records | None:
        file = open_parquet(self.path)
        names, classes = file.schema_arrow.names, class_names(file.schema_arrow.metadata)
        if not check_names(names, self):
            return None
        return self._records(names, lambda chosen: arrow_records(file.iter_batches(_BATCH, columns=chosen), classes))

    def _json(self) -> Records:
        first = next((text for line in self._lines() if (text := line.strip())), "")
        # A line such as ["a", "b"] is a wrong record, not the start of an array of objects.
        is_array = first in ("[", "[]") or re.match(r"\[\s*\{", first) is not None
        values = self._array if is_array else self._json_lines
        return self._records([], lambda _: self._objects(values()))

    def _json_lines(self) -> Iterator[tuple[int, object]]:
        row, lines = 0, self._lines()
        for line in lines:
            if not (text := line.strip()):
                continue
            row += 1
            try:
                yield row, _DECODER.decode(text)
            except RecursionError:
                self._invalid_json(row, "it is nested too deep", lines)
            except ValueError as error:
                self._invalid_json(row, str(error), lines)

    def _invalid_json(self, row: int, reason: str, lines: Lines) -> None:
        if lines.complete:
            message = f"Row {row} of {self.label} is not valid JSON: {reason}. Write one JSON object per line."
            self.fault("malformed_row", message, row)
        else:
            message = f"{self.label} ends in the middle of row {row} ({reason}). Upload it again."
            self.fault("cut_row", message, row)

    def _array(self) -> Iterator[tuple[int, object]]:
        try:
            values = _DECODER.decode("".join(self._lines()))
        except RecursionError:
            message = f"{self.label} is nested too deep. Write one flat object per line."
            self.fault("malformed_row", message)
        except ValueError as error:
            message = f"{self.label} starts as a JSON array but is invalid ({error}). If it was cut, upload it again."
            self.fault("malformed_row", message)
        else:
            yield from enumerate(values, start=1)

    def _objects(self, values: Iterable[tuple[int, object]]) -> Iterator[Record]:
        for row, value in values:
            if type(value) is not tuple:
                message = f'Row {row} of {self.label} is not a JSON object. Write {{"text": ..., "label": ...}}.'
                self.fault("malformed_row", message, row)
                continue
            record = dict(value)
            if len(record) < len(value):
                key, _ = Counter(key for key, _ in value).most_common(1)[0]
                message = f"Row {row} of {self.label} has the key '{key}' more than once. Remove all but one."
                self.fault("doubled_column", message, row, key)
                continue
            yield row, record

    def _delimited(self) -> Records | None:
        csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
        delimiter = self.delimiter or self._infer_delimiter()
        plain = delimiter == "\t" and _quotes_are_plain(self._lines())
        if plain:
            self.findings.note(f"{self.label}: quotes are read as characters because some do not enclose a whole field")
        lines = self._lines()
        reader = csv.reader(
            lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL, strict=True
        )
        try:
            header = next((cells for cells in reader if cells), [])
        except csv.Error as error:
            message = f"The header of {self.label} is invalid: {error}. Correct its quotes."
            raise UnreadableFile("malformed_row", message) from error
        names = [name.strip() for name in header]
        if names != header:
            self.findings.note(f"{self.label}: spaces around column names are removed")
        if unnamed := names.count("") if any(names) else 0:
            self.findings.note(f"{self.label}: ignored {counted(unnamed, 'column')} without a name")
        if not check_names(names, self):
            return None
        self.delimiter = delimiter
        return self._records(list(filter(None, names)), lambda _: self._rows(reader, lines, names))

    def _infer_delimiter(self) -> str:
        """Return the delimiter for which the largest share of the first records has as many fields as the header."""
        usual = "\t" if re.search(r"\.(tsv|tab)\b", self.path.name.lower()) else ","
        sample, complete = _start(self._lines())
        best, best_rank, reason = usual, (0.0, 0), "no other delimiter splits the header"
        for delimiter in sorted(_DELIMITERS, key=lambda delimiter: delimiter != usual):
            widths = _widths(sample, delimiter)
            if not complete:
                widths = widths[:-1] or widths
            if not widths or widths[0] < 2:
                continue
            same = Counter(widths)[widths[0]]
            rank = (same / len(widths), widths[0])
            if rank > best_rank:
                best, best_rank = delimiter, rank
                reason = f"with it, {same} of the first {len(widths)} records have {widths[0]} fields"
        if best != usual:
            self.findings.note(f"{self.label}: delimiter: {_DELIMITERS[best]}; {reason}")
        return best

    def _rows(self, reader: Iterator[list[str]], lines: Lines, names: Sequence[str]) -> Iterator[Record]:
        row, width = 0, len(names)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                row += 1
                self._invalid_row(str(error), row)
                continue
            if not cells or (len(cells) == 1 < width and not cells[0].strip()):  # a blank line
                continue
            row += 1
            if len(cells) == width:
                yield row, {name: cell for name, cell in zip(names, cells, strict=True) if name}
            elif len(cells) < width and not lines.complete:
                message = f"{self.label} ends in the middle of row {row}, after {len(cells)} of {width} fields."
                self.fault("cut_row", f"{message} Upload it again.", row)
            else:
                fields = counted(len(cells), "field")
                message = f"Row {row} of {self.label} has {fields}, but the header has {width}."
                advice = "Put texts that contain the delimiter in double quotes."
                advice = "Add the missing fields." if len(cells) < width else advice
                self.fault("malformed_row", f"{message} {advice}", row)

    def _invalid_row(self, reason: str, row: int) -> None:
        place = f"Row {row} of {self.label}"
        if "end of data" in reason:
            self.fault("cut_row", f"{place} has an open quote. Close it; if the file was cut, upload it again.", row)
        elif "field limit" in reason:
            self.fault("malformed_row", f"{place} has a field above {_FIELD_LIMIT} characters. Close open quotes.", row)
        else:
            self.fault("malformed_row", f"{place} is invalid: {reason}. Double the quotes within quoted texts.", row)


def delimiter_name(delimiter: str) -> str:
    return _DELIMITERS.get(delimiter, repr(delimiter))


def format_of(name: str) -> str | None:
    """Return the format by the suffix of a file name: "json", "delimited" or "parquet"; None for other suffixes."""
    return _FORMATS.get(Path(name_without_packing(name)).suffix.lower())


def check_names(names: Sequence[str], file: TableFile) -> bool:
    """Return whether the column names are valid. If not, add data errors for repeated, invalid or too many names.

    Several names may be empty.
    """
    before = file.findings.total
    for name, count in Counter(names).items():
        if count > 1 and name:
            message = f"{file.label} has {count} columns named '{name}'. Rename or remove all but one."
            file.fault("doubled_column", message, column=name)
        if "\x00" in name or name != without_surrogates(name):
            shown = without_surrogates(name).replace("\x00", "?")
            message = f"The column name '{shown}' of {file.label} has NUL or invalid characters. Rename the column."
            message += " If the file is UTF-16 without a byte order mark, save it as UTF-8."
            file.fault("bad_character", message, column=shown)
    if len(names) > MAX_COLUMNS:
        message = f"{file.label} has more than {MAX_COLUMNS} columns. Remove those that are not needed."
        file.fault("too_many_columns", message)
    return file.findings.total == before


def without_surrogates(text: str) -> str:
    """Return the text with question marks instead of lone surrogates."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _start(lines: Iterable[str]) -> tuple[str, bool]:
    """Return the first `_SAMPLE_CHARS` characters of a file, and whether they are the whole file."""
    parts, size = [], 0
    for line in lines:
        parts.append(line)
        size += len(line)
        if size > _SAMPLE_CHARS:
            return "".join(parts)[:_SAMPLE_CHARS], False
    return "".join(parts), True


def _widths(sample: str, delimiter: str) -> list[int]:
    """Return the number of fields of each record in the sample, until the first invalid record."""
    widths = []
    try:
        for cells in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter):
            if cells:
                widths.append(len(cells))
    except csv.Error:
        pass  # `_rows` reads the whole file in strict mode and reports this error
    return widths


def _quotes_are_plain(lines: Iterable[str]) -> bool:
    """Return whether the quotes of a TSV file are plain characters, which do not enclose fields.

    They are plain if two conditions hold. All lines have the same number of fields. At least one field begins with a
    quote but is not completely enclosed in quotes.
    """
    stray = False
    width = None
    for line in lines:
        if not line.strip():
            continue
        tabs = line.count("\t")
        width = tabs if width is None else width
        if tabs != width:
            return False
        if '"' in line and not stray:
            fields = line.rstrip("\r\n").split("\t")
            stray = any(field.startswith('"') and not _QUOTED.fullmatch(field) for field in fields)
    return stray


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, Sequence[str]]:
    """Return the class names of each column that holds class numbers: column → names, in the order of the numbers.

    The library `datasets` stores the names in the metadata of an Arrow schema. For invalid metadata, return {}.
    """
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"].items()
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}
    classes: dict[str, Sequence[str]] = {}
    for name, feature in features:
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            if isinstance(names, list) and all(isinstance(each, str) for each in names):
                classes[name] = names
    return classes


def _unpacked_size(batch: pa.RecordBatch) -> int:
    """Return the bytes of a batch after decoding its dictionaries. Each row adds one byte, so that nulls count too."""
    import pyarrow as pa

    columns = (c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns)
    return batch.num_rows + sum(column.nbytes for column in columns)


def arrow_records(batches: Iterable[pa.RecordBatch], classes: Mapping[str, Sequence[str]]) -> Iterator[Record]:
    """Yield the records of Arrow tables or record batches, numbered from 1. classes: result of `class_names`."""
    row = itertools.count(1)
    for batch in batches:
        names = batch.schema.names
        columns = [_values(batch.column(index), classes.get(name)) for index, name in enumerate(names)]
        for values in zip(*columns, strict=True):
            yield next(row), dict(zip(names, values, strict=True))


def _values(column: pa.Array | pa.ChunkedArray, classes: Sequence[str] | None) -> Sequence[object]:
    """Return the Python values of an Arrow column: str, bool, int, float, Decimal, None or Unread."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in _values(chunk, classes)]
    if isinstance(column, pa.ExtensionArray):
        return _values(column.storage, classes)
    types, kind = pa.types, column.type
    if types.is_dictionary(kind):
        return _values(column.dictionary_decode(), classes)
    if types.is_nested(kind) or types.is_temporal(kind):
        unread = Unread.NESTED if types.is_nested(kind) else Unread.TIME
        return [unread if valid else None for valid in column.is_valid().to_pylist()]
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return _strings(column)
    values = column.to_pylist()
    if types.is_integer(kind) and classes is not None:
        return [classes[value] if value is not None and 0 <= value < len(classes) else None for value in values]
    if types.is_floating(kind):
        values = [None if value != value else value for value in values]  # NaN counts as null
        if kind.bit_width < 64:
            narrow = kind.to_pandas_dtype()  # NumPy prints the 32-bit number 1.1 as 1.1, Python as 1.100000023841858
            values = [None if value is None else float(str(narrow(value))) for value in values]
        return values
    return [_decoded(value) if isinstance(value, bytes) else value for value in values]


def _strings(column: pa.Array) -> list[str | None]:
    """Return the strings of an Arrow column, with invalid bytes as lone surrogates."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def _decoded(value: bytes) -> str | Unread:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return Unread.BYTES
