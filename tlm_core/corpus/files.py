"""Read the rows and paragraphs of corpus files one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tlm_core.tables import records
from tlm_core.tables.findings import Findings
from tlm_core.tables.records import Records, TableFile
from tlm_core.tables.textfile import UNDECODED, UTF8, Lines, name_without_packing
from tlm_core.wording import counted

SUPPORTED = "Supported types: jsonl, csv, tsv, txt, md and rst, also as .gz or .zst, and parquet."
TEXT_COLUMNS = (
    "text", "content", "body", "passage", "abstract", "document", "article", "contents", "raw_content", "sentence",
    "paragraph", "description", "summary",
)  # fmt: skip
_OTHER_COLUMNS = ("source", "id", "rank")
_PIECE = 1 << 16

Notify = Callable[[str], None]


class Row(NamedTuple):
    """A record of a file. number: from 1. source, id, rank: values of the record; None if missing or empty."""

    number: int
    text: str
    source: object
    id: object
    rank: object = None


def format_of(path: Path) -> str | None:
    """Return the format by file name: "json" (JSON Lines), "delimited", "parquet" or "plain"; None for other names."""
    unpacked = Path(name_without_packing(path.name))
    if unpacked.suffix.lower() in (".txt", ".md", ".rst"):
        return "plain"
    kind = None if unpacked.suffix.lower() == ".json" else records.format_of(unpacked.name)
    return None if kind == "parquet" and unpacked.name != path.name else kind


def _text_column(
    names: Sequence[str], wanted: str | None, place: str, row: int | None, findings: Findings
) -> str | None:
    """Return the column with the texts: `wanted` if it is set, otherwise an inferred column.

    The inferred column is the first of TEXT_COLUMNS, or the only column besides source, id and rank. Adds a note for an
    inferred column other than `text`. If no column has the texts, adds a data error and returns None. place: the file
    or the row, for messages.
    """
    listed = ", ".join(f"'{name}'" for name in names) or "none"
    by_fold = _by_fold(names)
    usual = [wanted.casefold()] if wanted else TEXT_COLUMNS
    rest = [] if wanted else [name for name in names if name.strip().casefold() not in _OTHER_COLUMNS]
    column = next((by_fold[name] for name in usual if name in by_fold), rest[0] if len(rest) == 1 else None)
    if column is None:
        message = f"{place} has no column '{wanted or 'text'}' among {listed}. Rename a column, or set the text column."
        findings.fault("missing_column", message, row=row)
    elif column != "text" and not wanted:
        findings.note(f"{place} has no column 'text' among {listed}; reading '{column}'")
    return column


def _other_columns(names: Sequence[str]) -> list[str]:
    """Return the columns for _OTHER_COLUMNS. Their case does not matter, as for the column with the texts."""
    by_fold = _by_fold(names)
    return [by_fold.get(name, name) for name in _OTHER_COLUMNS]


def _by_fold(names: Sequence[str]) -> dict[str, str]:
    """Return a mapping from a name without case and outer blanks to the first column with this name."""
    return {name.strip().casefold(): name for name in reversed(names)}


def read_rows(path: Path, text_column: str | None, findings: Findings) -> Iterator[Row]:
    """Yield each record with a text in a jsonl, csv, tsv or parquet file. Add data errors to `findings`."""
    file = TableFile(path, findings, encoding=UTF8, kind=format_of(path))
    if (table := file.open()) is not None:
        yield from rows_of(table, text_column, path.name, findings)


def rows_of(table: Records, text_column: str | None, file: str, findings: Findings) -> Iterator[Row]:
    """Yield each record with a text in a table. Add data errors to `findings`. file: name of the table in messages."""
    column: str | None = None
    chosen, others = None, list(_OTHER_COLUMNS)
    if table.names:
        if (column := _text_column(table.names, text_column, file, None, findings)) is None:
            return
        others = _other_columns(table.names)
        chosen = list(dict.fromkeys((column, *(name for name in others if name in table.names))))
    blank = 0
    for number, record in table.read(chosen):
        place = f"Row {number} of {file}"
        if column is None:
            if (column := _text_column(list(record), text_column, place, number, findings)) is None:
                return
            others = _other_columns(list(record))
        text = record.get(column)
        if column not in record:
            message = f"{place} has no key '{column}', which earlier rows have. Add the key."
            findings.fault("missing_column", message, row=number, column=column)
        elif text is None or (isinstance(text, str) and not text.strip()):
            blank += 1
        elif not isinstance(text, str):
            message = f"{place}, column '{column}', is not a text. Write it as a string."
            findings.fault("not_text", message, row=number, column=column)
        elif table.damaged and not text.isascii() and UNDECODED.search(text):
            message = f"{place}, column '{column}', has bytes that are not UTF-8. Save the text as UTF-8."
            findings.fault("bad_encoding", message, row=number, column=column)
        else:
            yield Row(number, text, *(None if value == "" else value for value in map(record.get, others)))
    if blank:
        findings.note(f"{file}: skipped {counted(blank, 'row')} without text")


def read_paragraphs(path: Path, findings: Findings) -> Iterator[str]:
    """Yield the paragraphs (between blank lines) of a plain text file. Divide paragraphs above 65,536 characters."""
    parts: list[str] = []
    size = 0
    with TableFile(path, findings).errors_as_faults():
        for line in Lines(path, UTF8, piece=_PIECE):
            parts.append(line)
            size += len(line)
            if size >= _PIECE or (not line.strip() and line.endswith("\n")):
                text = "".join(parts)
                # If a piece ends within a word, the next piece begins with this word.
                word = "" if text[-1].isspace() else text.rsplit(maxsplit=1)[-1]
                held = "" if len(word) == len(text) else word
                yield text.removesuffix(held)
                parts, size = [held], len(held)
    yield "".join(parts)
