"""Records of Parquet files and of any other stream of Arrow tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlm_core.parquet import open_parquet
from tlm_core.tasks.findings import Findings
from tlm_core.tasks.options import Limits
from tlm_core.tasks.table import BYTES, DATE, KINDS, NOT_A_VALUE, RawTable, TableBuilder, as_text, check_names

_BATCH = 2_000
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)


def read_parquet(path: Path, split: str, findings: Findings, limits: Limits) -> RawTable | None:
    """All records of a Parquet file; None if it cannot be used at all.

    Faults added: unreadable_file, file_too_large, doubled_column, too_many_columns, bad_character, bad_encoding.
    """
    try:
        file = open_parquet(path)
        size = sum(file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups))
        if size > limits.max_file_bytes:
            findings.fault("file_too_large", too_large(path.name, limits), split=split)
            return None
        names = file.schema_arrow.names
        if not check_names(names, path.name, split, findings, limits):
            return None
        classes = class_names(file.schema_arrow.metadata)
        return table_from_arrow(file.iter_batches(_BATCH), names, path.name, split, findings, classes)
    except (pa.ArrowException, OSError) as error:
        message = f"{path.name} is not a whole Parquet file ({error}); it may be cut: write or upload it again"
        findings.fault("unreadable_file", message, split=split)
        return None


def too_large(file: str, limits: Limits) -> str:
    """The sentence for a file above the limit."""
    return f"{file} unpacks to more than {limits.max_file_bytes:,} bytes; give fewer rows or shorter texts"


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, Sequence[str]]:
    """Names behind the numbers of label columns, as the `datasets` library keeps them in a schema's metadata.

    Metadata of any other form names nothing: the numbers stay what the labels are called.
    """
    try:
        note = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    features = _member(_member(note, "info"), "features")
    named = {name: _member(features, name) for name in features if _member(features, name).get("_type") == "ClassLabel"}
    return {name: feature["names"] for name, feature in named.items() if _are_names(feature.get("names"))}


def _member(note: Any, key: str) -> dict[str, Any]:
    """The object under `key` of what may be an object; empty where there is none."""
    value = note.get(key) if isinstance(note, dict) else None
    return value if isinstance(value, dict) else {}


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def table_from_arrow(
    batches: Iterable[Any],
    names: Sequence[str],
    file: str,
    split: str,
    findings: Findings,
    classes: Mapping[str, Sequence[str]],
) -> RawTable:
    """Records of Arrow tables or record batches; columns in `classes` are numbers that stand for those names."""
    builder = TableBuilder(split, file, findings)
    builder.declare(names)
    start = 1
    for batch in batches:
        rows = np.arange(start, start + len(batch), dtype=np.int64)
        arrays = {}
        for name in names:
            array = _flat(batch.column(name))
            values, kind, unread = _strings(array, classes.get(name))
            there, read = (pc.is_valid(one).to_numpy(zero_copy_only=False) for one in (array, values))
            for found, mask in ((kind, read), (unread, there & ~read)):
                if found is not None and mask.any():
                    builder.add_kind(name, found, rows[mask].tolist())
            arrays[name] = _checked(values, name, rows, file, split, findings)
        builder.add_arrays(rows, arrays)
        start += len(batch)
    return builder.build()


def _flat(column: Any) -> Any:
    """One plain array, without chunks, dictionary or extension type."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # nothing but an empty or a huge column stays in chunks
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _strings(array: Any, classes: Sequence[str] | None) -> tuple[Any, str | None, str | None]:
    """The array as strings, the kind of its values, and the kind of those that are not read and null in the strings.

    None: there is no such value, or it counts as null.
    """
    kind, types = array.type, pa.types
    if types.is_integer(kind) and classes is not None:
        names = [
            classes[value] if value is not None and 0 <= value < len(classes) else None for value in array.to_pylist()
        ]
        return pa.array(names, pa.string()), KINDS[str], None
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return array.cast(pa.string(), safe=False), KINDS[str], None
    if types.is_boolean(kind) or types.is_integer(kind):
        return array.cast(pa.string()), KINDS[bool if types.is_boolean(kind) else int], None
    if types.is_floating(kind):
        values = [None if value is None or value != value else as_text(float(value)) for value in array.to_pylist()]
        return pa.array(values, pa.string()), KINDS[float], None
    if types.is_decimal(kind):
        values = [None if value is None else _spelled(value) for value in array.to_pylist()]
        return pa.array(values, pa.string()), KINDS[float if kind.scale > 0 else int], None
    if any(is_bytes(kind) for is_bytes in _BYTES):
        return pa.array([_decoded(value.as_py()) for value in array], pa.string()), KINDS[str], BYTES
    unread = DATE if types.is_temporal(kind) else NOT_A_VALUE
    return pa.nulls(len(array), pa.string()), None, unread


def _spelled(value: Decimal) -> str:
    """As `as_text` spells numbers, with all digits."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _decoded(value: bytes | None) -> str | None:
    """What older writers mean by a binary column; None for what is no text."""
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _checked(values: Any, name: str, rows: Any, file: str, split: str, findings: Findings) -> Any:
    """The strings, with those that are not UTF-8 repaired and a fault for each."""
    try:
        values.validate(full=True)
        return values
    except pa.ArrowInvalid:
        pass
    clean = []
    for row, value in zip(rows.tolist(), values.cast(pa.binary()).to_pylist(), strict=True):
        text = None if value is None else value.decode("utf-8", "replace")
        if text is not None and text.encode() != value:
            message = f"row {row} of {file}: '{name}' holds bytes that are not UTF-8; write the file anew"
            findings.fault("bad_encoding", message, split=split, row=row, column=name)
        clean.append(text)
    return pa.array(clean, pa.string())
