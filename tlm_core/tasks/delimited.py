"""Records of CSV and TSV files (RFC 4180 quoting, any one-character delimiter)."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tlm_core.tasks.encoding import Encoding, ends_with_newline, open_text
from tlm_core.tasks.findings import Findings
from tlm_core.tasks.options import Limits
from tlm_core.tasks.table import RawTable, TableBuilder, check_names

DELIMITERS = (",", "\t", ";", "|")
_NAMES = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_BATCH = 2_000
SAMPLE_CHARS = 1 << 18  # by which a delimiter is guessed
# Longest single field; a quote that never closes would otherwise take the rest of any file into memory.
_FIELD_LIMIT = 1 << 27
_SHOWN_CHARS = 80
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def read_delimited(
    path: Path,
    split: str,
    encoding: Encoding,
    findings: Findings,
    limits: Limits,
    *,
    delimiter: str | None,
) -> RawTable | None:
    """All records of a delimited file with a header line; None if the header itself is at fault.

    delimiter: None to guess it. Faults added: empty_file, missing_column, doubled_column, too_many_columns,
    malformed_row, cut_row.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    if delimiter is None:
        with open_text(path, encoding, newline="") as handle:
            sample = handle.read(SAMPLE_CHARS)
            whole = not handle.read(1)
        delimiter, reason = guess_delimiter(sample, tab_first=".tsv" in path.name.lower(), whole=whole)
        if delimiter != ("\t" if ".tsv" in path.name.lower() else ","):
            findings.note(f"{path.name}: delimiter: {_NAMES[delimiter]}; {reason}")
    plain = delimiter == "\t" and _quotes_are_plain(path, encoding)
    if plain:
        findings.note(f"{path.name}: quotes are taken as plain characters, since some do not enclose a whole field")
    with open_text(path, encoding, newline="") as handle:
        reader = csv.reader(
            handle, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL, strict=True
        )
        names = _header(reader, path.name, split, delimiter, findings, limits)
        if names is None:
            return None
        builder = TableBuilder(split, path.name, findings, damaged=encoding.damaged)
        builder.declare(name for name in names if name)
        records = _records(reader, path, encoding, len(names), split, findings)
        while batch := list(itertools.islice(records, _BATCH)):
            columns = zip(*(record for _, record in batch), strict=True)
            named = {name: values for name, values in zip(names, columns, strict=True) if name}
            builder.add_values([row for row, _ in batch], named)
    return builder.build()


def guess_delimiter(sample: str, *, tab_first: bool, whole: bool) -> tuple[str, str]:
    """The delimiter by which most records of the sample are as wide as its header, and the reason.

    whole: the sample is the whole file, so its last record counts too.
    """
    order = sorted(DELIMITERS, key=lambda delimiter: delimiter != "\t") if tab_first else DELIMITERS
    best, best_rank, reason = order[0], (0.0, 0), "no other delimiter splits the header"
    for delimiter in order:
        widths = _widths(sample, delimiter)
        if not whole:
            widths = widths[:-1] or widths
        if not widths or widths[0] < 2:
            continue
        same = Counter(widths)[widths[0]]
        rank = (same / len(widths), widths[0])
        if rank > best_rank:
            best, best_rank = delimiter, rank
            reason = f"{same} of the first {len(widths)} records have {widths[0]} fields by it"
    return best, reason


def _widths(sample: str, delimiter: str) -> list[int]:
    widths = []
    try:
        for record in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter):
            if record:
                widths.append(len(record))
    except csv.Error:
        pass  # what was read so far has to do; the file itself is read strictly later
    return widths


def _quotes_are_plain(path: Path, encoding: Encoding) -> bool:
    """Whether a tab-separated file uses no quoting: all lines equally wide, and a field begins with a stray quote."""
    stray = False
    width = None
    with open_text(path, encoding, newline="") as handle:
        for line in handle:
            tabs = line.count("\t")
            if line.strip() and width is None:
                width = tabs
            if line.strip() and tabs != width:
                return False
            if '"' in line and not stray:
                fields = line.rstrip("\r\n").split("\t")
                stray = any(field.startswith('"') and not _QUOTED.fullmatch(field) for field in fields)
    return stray


def _header(
    reader: Iterator[list[str]], file: str, split: str, delimiter: str, findings: Findings, limits: Limits
) -> list[str] | None:
    try:
        raw = next((record for record in reader if record), None)
    except csv.Error as error:
        findings.fault("malformed_row", f"the header of {file} cannot be read: {error}; mend its quotes", split=split)
        return None
    if raw is None or not any(name.strip() for name in raw):
        findings.fault("empty_file", f"{file} is empty; it needs a header line and one record a line", split=split)
        return None
    names = [name.strip() for name in raw]
    if names != raw:
        findings.note(f"{file}: blanks around column names were left out")
    if "" in names:
        findings.note(f"{file}: {names.count('')} column(s) without a name were left out")
    if not check_names(names, file, split, findings, limits):
        return None
    if len(named := [name for name in names if name]) == 1:
        told = _NAMES.get(delimiter, repr(delimiter))
        message = (
            f"the header of {file}, read with the delimiter {told}, names one column, "
            f"'{named[0][:_SHOWN_CHARS]}'; it needs texts and labels: say another delimiter, or remove what stands "
            "above the header"
        )
        findings.fault("missing_column", message, split=split)
        return None
    return names


def _records(
    reader: Iterator[list[str]], path: Path, encoding: Encoding, width: int, split: str, findings: Findings
) -> Iterator[tuple[int, list[str]]]:
    """Numbered records of the right width; a fault is added for each of the others."""
    file = path.name
    row = 0
    short: tuple[int, int] | None = None  # the latest record with too few fields: row, fields
    while True:
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            row += 1
            _malformed(str(error), row, file, split, findings)
            continue
        if not record or (len(record) == 1 < width and not record[0].strip()):  # a blank line
            continue
        row += 1
        if short is not None:
            _too_few(*short, width, file, split, findings)
            short = None
        if len(record) == width:
            yield row, record
        elif len(record) < width:
            short = (row, len(record))
        else:
            message = (
                f"row {row} of {file} has {len(record)} fields, the header {width}; put texts that hold "
                "the delimiter in double quotes"
            )
            findings.fault("malformed_row", message, split=split, row=row)
    if short is not None and not ends_with_newline(path, encoding):
        message = f"{file} ends in the middle of row {short[0]}, with {short[1]} of {width} fields; upload it again"
        findings.fault("cut_row", message, split=split, row=short[0])
    elif short is not None:
        _too_few(*short, width, file, split, findings)


def _too_few(row: int, fields: int, width: int, file: str, split: str, findings: Findings) -> None:
    message = f"row {row} of {file} has {fields} field(s), the header {width}; add the missing ones"
    findings.fault("malformed_row", message, split=split, row=row)


def _malformed(reason: str, row: int, file: str, split: str, findings: Findings) -> None:
    if "end of data" in reason:
        message = f"row {row} of {file} opens a quote that never closes; the file may be cut, else close the quote"
        findings.fault("cut_row", message, split=split, row=row)
    elif "field limit" in reason:
        message = f"row {row} of {file} has a field above {_FIELD_LIMIT} characters; is a quote left open?"
        findings.fault("malformed_row", message, split=split, row=row)
    else:
        message = f"row {row} of {file} cannot be read: {reason}; write a quote within quotes twice"
        findings.fault("malformed_row", message, split=split, row=row)
