"""From files to columns: which file is which split, what type it has, and its records."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from tlm_core.artifacts import MANIFEST
from tlm_core.selection.given import GIVEN_PART, is_given
from tlm_core.tasks.columnar import read_parquet, too_large
from tlm_core.tasks.delimited import read_delimited
from tlm_core.tasks.encoding import detect, open_bytes
from tlm_core.tasks.findings import Findings
from tlm_core.tasks.jsonlines import read_json
from tlm_core.tasks.options import Limits
from tlm_core.tasks.table import RawTable
from tlm_core.tasks.task import FURTHER, SPLITS

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "devel": "validation",
    "valid": "validation",
    "val": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_TYPES = {
    "jsonl": "json",
    "ndjson": "json",
    "json": "json",
    "csv": "delimited",
    "tsv": "delimited",
    "tab": "delimited",
    "parquet": "parquet",
    "pq": "parquet",
}
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive or an Excel sheet"),
    (b"\xd0\xcf\x11\xe0", "an old Excel sheet"),
    (b"%PDF", "a PDF"),
    (b"ARROW1", "an Arrow file"),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard"),
    (b"BZh", "packed with bzip2"),
    (b"\xfd7zXZ", "packed with xz"),
)
WANTED = "give jsonl, csv, tsv or parquet (the text forms also as .gz)"


def find_splits(source: Mapping[str, Path] | Path, findings: Findings) -> dict[str, Path]:
    """Which file holds which split.

    source: a mapping from split names (dev, val and the like are known) to files, one file (all of it is
    train), or a folder whose file names tell the split. A part `selection` is no split and left to `given_part`;
    `test_NAME`, in letters, is a further test set where there is a `test` too.
    Faults added: no_file, no_train, doubled_split, unknown_split.
    """
    found: dict[str, Path] = {}
    if isinstance(source, Mapping):
        named = {name: name if _is_further(name) else _SPLIT_WORDS.get(name.lower()) for name in source}
        for name, split in named.items():
            if name == GIVEN_PART:
                continue
            if split is None:
                findings.fault("unknown_split", f"unknown split '{name}'; known are train, validation and test")
            else:
                _take(found, split, Path(source[name]), findings)
    elif source.is_dir():
        _find_in_folder(source, found, findings)
    else:
        found["train"] = source
    if "train" not in found and findings.ok:
        names = ", ".join(path.name for path in found.values()) or "no data file"
        message = f"there is no train split among the files ({names}); name one train.jsonl, train.csv or the like"
        findings.fault("no_train", message)
    for split, path in list(found.items()):
        if not path.is_file():
            findings.fault("no_file", f"{path.name} is not a file that can be read", split=split)
            del found[split]
    return {split: found[split] for split in (*SPLITS, *sorted(set(found) - set(SPLITS))) if split in found}


def _is_further(name: str) -> bool:
    return re.fullmatch(f"{FURTHER}[a-z]+", name) is not None


def _find_in_folder(folder: Path, found: dict[str, Path], findings: Findings) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files = [path for path in files if path.name != MANIFEST and not is_given(path)]
    foreign = [path.name for path in files if not _file_type(path) and _told_splits(path)]
    if foreign:
        findings.note(f"files of a type that is not read were left out: {', '.join(foreign[:20])}; {WANTED}")
    files = [path for path in files if _file_type(path)]
    unclear = []
    stems = {path.name.split(".")[0] for path in files}
    for path in files:
        stem = path.name.split(".")[0]
        if "test" in stems and _is_further(stem):
            _take(found, stem, path, findings)
            findings.note(f"{path.name} is a further test set beside test")
            continue
        splits = _told_splits(path)
        if len(splits) == 1:
            _take(found, splits.pop(), path, findings)
        else:
            unclear.append(path)
    if not found and len(unclear) == 1:
        found["train"] = unclear.pop()
        findings.note(f"{found['train'].name} is the only data file, so it is taken as train")
    if unclear:
        findings.note(f"files whose names tell no split were left out: {', '.join(path.name for path in unclear[:20])}")


def _told_splits(path: Path) -> set[str]:
    words = re.split(r"[^a-z]+", path.name.lower())
    return {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}


def _take(found: dict[str, Path], split: str, path: Path, findings: Findings) -> None:
    if split in found:
        message = f"{found[split].name} and {path.name} both say that they are {split}; join them or remove one"
        findings.fault("doubled_split", message, split=split)
    else:
        found[split] = path


def _file_type(path: Path) -> str | None:
    """Type told by the name: json, delimited, parquet; None for any other."""
    suffixes = [suffix[1:].lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == "gz":
        suffixes.pop()
    return _TYPES.get(suffixes[-1]) if suffixes else None


def read_table(path: Path, split: str, findings: Findings, limits: Limits, *, delimiter: str | None) -> RawTable | None:
    """All records of one file, or None if none can be read; every fault in it is added to `findings`.

    Faults added here: empty_file, no_rows, wrong_type, unreadable_file, cut_file, file_too_large, bad_encoding.
    """
    before = findings.total
    try:
        table = _read(path, split, findings, limits, delimiter)
    except UnicodeDecodeError as error:
        message = f"{path.name} is not the {error.encoding} that its start says ({error.reason}); save it as UTF-8"
        findings.fault("bad_encoding", message, split=split)
        return None
    except EOFError:
        findings.fault("cut_file", f"{path.name} ends before its packed data do; upload it again", split=split)
        return None
    except (OSError, zlib.error) as error:
        message = f"{path.name} cannot be read ({error}); write or upload it again"
        findings.fault("unreadable_file", message, split=split)
        return None
    if table is None or len(table.rows):
        return table
    if findings.total == before:
        findings.fault("no_rows", f"{path.name} has column names but no record; add some", split=split)
    return None


def _read(path: Path, split: str, findings: Findings, limits: Limits, delimiter: str | None) -> RawTable | None:
    with open_bytes(path) as handle:
        start = handle.read(1 << 16)
    if not start:
        findings.fault("empty_file", f"{path.name} is empty; upload it again", split=split)
        return None
    kind = _content_type(path, start, split, findings)
    if kind is None:
        return None
    if kind == "parquet":
        return read_parquet(path, split, findings, limits)
    if not _fits(path, limits.max_file_bytes):
        findings.fault("file_too_large", too_large(path.name, limits), split=split)
        return None
    encoding = detect(path)
    if encoding.note:
        findings.note(f"{path.name}: {encoding.note}")
    if kind == "json":
        return read_json(path, split, encoding, findings, limits)
    return read_delimited(path, split, encoding, findings, limits, delimiter=delimiter)


def _fits(path: Path, limit: int) -> bool:
    """Whether a file has at most `limit` bytes, unpacked; reads no more than that."""
    read = 0
    with open_bytes(path) as handle:
        while read <= limit and (block := handle.read(1 << 20)):
            read += len(block)
    return read <= limit


def _content_type(path: Path, start: bytes, split: str, findings: Findings) -> str | None:
    """The type by name, once the file's first bytes agree with it; else a fault."""
    named = _file_type(path)
    foreign = next((what for mark, what in _FOREIGN if start.startswith(mark)), None)
    text = start.replace(b"\x00", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    parquet, braces = start.startswith(b"PAR1"), text[:1] in (b"{", b"[")
    problem = None
    if foreign:
        problem = f"{path.name} is {foreign}; {WANTED}"
    elif parquet != (named == "parquet") and named is not None:
        problem = f"{path.name} {'is' if parquet else 'is not'} Parquet, against its name; {WANTED}, named so"
    elif named == "json" and text and not braces:
        problem = f"{path.name} does not begin with an object, as JSON Lines would; if it is CSV, name it .csv"
    elif named == "delimited" and re.match(rb'\{\s*"[^"\n]*"\s*:', text):
        problem = f"{path.name} begins with a JSON object; name it .jsonl"
    if problem:
        findings.fault("wrong_type", problem, split=split)
        return None
    if named is None:
        named = "parquet" if parquet else "json" if braces else "delimited"
        findings.note(f"{path.name}: its name tells no type; by its content it is read as {named}")
    return named
