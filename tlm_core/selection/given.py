"""A selection that comes with the data set (the release's `text,id,rank` file) instead of being retrieved.

Beside the task it lies as one Parquet file: `id`, `text`, `source`, `rank`, in the order in which passages are taken.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tlm_core.corpus.files import Faults, Row, format_of, read_rows
from tlm_core.corpus.passages import Passage, encodable, passage_id
from tlm_core.errors import CorruptArtifact, InvalidRequest
from tlm_core.parquet import open_parquet
from tlm_core.selection.keep import Candidate

GIVEN = "selection.parquet"
GIVEN_PART = "selection"
# The release's data sets call it by the scale: small_external.csv, and so on.
_NAME = re.compile(rf"{GIVEN_PART}|((small|medium|large)_)?external")
_SOURCE = "given"
_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("rank", pa.int32())])
_TEXTS = pa.schema([("text", pa.large_string()), ("source", pa.large_string())])
_BATCH = 4096
_HIGHEST = 2**31 - 2


def given_part(source: object) -> Path | None:
    """The selection of a data set, if it brings one: the part `selection` of a mapping, or the file of a folder that
    is named `selection`, `external` or `SCALE_external`. Raises InvalidRequest if there are several."""
    if isinstance(source, Mapping):
        return Path(source[GIVEN_PART]) if GIVEN_PART in source else None
    if not isinstance(source, Path) or not source.is_dir():
        return None
    found = [path for path in sorted(source.iterdir()) if path.is_file() and is_given(path)]
    if len(found) > 1:
        raise InvalidRequest(f"{found[0].name} and {found[1].name} both give a selection; remove one")
    return found[0] if found else None


def is_given(path: Path) -> bool:
    """Whether a file's name says that it is a selection, not a split."""
    return _NAME.fullmatch(path.name.split(".")[0].lower()) is not None


def write_given(path: Path, target: Path) -> int:
    """Write the passages of `path` (csv, tsv, jsonl or parquet) to `target`; answers how many.

    Only the columns `text`, `source` and `rank` are looked at. Equal texts are one passage at their best rank, blank
    ones are left out. Passages are ordered by rank, then id; without ranks as in the file. Ranks that count from 0 are
    counted from 1. Raises InvalidRequest for a type that is not read, InvalidDataset with every fault.
    """
    if format_of(path) not in ("csv", "tsv", "jsonl", "parquet"):
        raise InvalidRequest(f"the selection '{path.name}' is of no type that is read; give csv, tsv, jsonl or parquet")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".given-") as folder:
        texts = Path(folder) / "texts.arrow"
        ids, ranks = _read(path, texts)
        _write_ordered(target, texts, ids, ranks)
    return len(ids)


def given_candidates(path: Path, top_k: int) -> Iterator[list[Candidate]]:
    """The passages of `write_given`'s file with a rank of at most `top_k`, or all of them if they have no ranks."""
    try:
        with open_parquet(path) as file:
            place = 0
            for batch in file.iter_batches(_BATCH):
                found = []
                for row in batch.to_pylist():
                    rank = row.pop("rank")
                    if rank is None or rank <= top_k:
                        found.append(Candidate(place, place + 1 if rank is None else rank, None, Passage(**row)))
                        place += 1
                yield found
    except (pa.ArrowException, OSError) as error:
        raise CorruptArtifact(f"{path} cannot be read ({error}); run the validate stage again") from error


def _read(path: Path, texts: Path) -> tuple[list[str], NDArray[np.int32] | None]:
    """Copy the distinct texts to `texts`; their ids and, if the file has any, their best ranks."""
    faults = Faults("the selection")
    numbers: dict[str, int] = {}
    ranks: list[int | None] = []
    with pa.OSFile(str(texts), "wb") as sink, pa.ipc.new_file(sink, _TEXTS) as writer:
        pending: list[tuple[str, str]] = []
        for row in read_rows(path, None, lambda _: None, faults):
            if row.text is None or (isinstance(row.text, str) and not row.text.strip()):
                continue
            if not isinstance(row.text, str):
                faults.add(
                    path.name, "not_text", f"the text is {type(row.text).__name__}, not a string", row=row.number
                )
                continue
            rank = _rank(row, path.name, faults)
            text = encodable(row.text)
            number = numbers.setdefault(passage_id(text), len(ranks))
            if number < len(ranks):
                ranks[number] = _better(ranks[number], rank)
                continue
            ranks.append(rank)
            pending.append((text, encodable(str(row.source)) if row.source is not None else _SOURCE))
            if len(pending) == _BATCH:
                _flush(writer, pending)
        _flush(writer, pending)
    unranked = ranks.count(None)
    if 0 < unranked < len(ranks):
        message = f"{unranked} passages have no rank and the others have one; give all of them ranks, or none"
        faults.add(path.name, "missing_rank", message, column="rank")
    if not ranks:
        faults.add(path.name, "no_rows", "there is no passage in it; add some, or leave the file out")
    faults.check()
    return list(numbers), None if unranked else _from_one(np.array(ranks, np.int32))


def _better(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else min(one, other)


def _rank(row: Row, name: str, faults: Faults) -> int | None:
    value = row.rank
    if value is None or value == "":
        return None
    try:
        rank = int(value) if isinstance(value, str) else value
        if isinstance(rank, float) and rank.is_integer():
            rank = int(rank)
        if isinstance(rank, int) and not isinstance(rank, bool) and 0 <= rank <= _HIGHEST:
            return rank
    except ValueError:
        pass
    faults.add(
        name, "not_a_rank", f"{value!r} is no rank; ranks are whole numbers from 1", row=row.number, column="rank"
    )
    return None


def _from_one(ranks: NDArray[np.int32]) -> NDArray[np.int32]:
    return ranks + 1 if len(ranks) and ranks.min() == 0 else ranks


def _flush(writer: Any, pending: list[tuple[str, str]]) -> None:
    if pending:
        columns = [pa.array(column, pa.large_string()) for column in zip(*pending, strict=True)]
        writer.write_batch(pa.record_batch(columns, schema=_TEXTS))
        pending.clear()


def _write_ordered(target: Path, texts: Path, ids: list[str], ranks: NDArray[np.int32] | None) -> None:
    names = pa.array(ids, pa.string())
    order = np.arange(len(ids))
    if ranks is not None:
        table = pa.table({"rank": ranks, "id": names})
        order = pc.sort_indices(table, [("rank", "ascending"), ("id", "ascending")]).to_numpy().astype(np.int64)
    with pa.memory_map(str(texts)) as source, pq.ParquetWriter(target, _SCHEMA, compression="zstd") as writer:
        file = pa.ipc.open_file(source)
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            kept = _taken(batches, part)
            columns = [names.take(pa.array(part)), *(pa.array(column, pa.string()) for column in kept)]
            rank = pa.nulls(len(part), pa.int32()) if ranks is None else pa.array(ranks[part])
            writer.write_batch(pa.record_batch([*columns, rank], schema=_SCHEMA))


def _taken(batches: list[Any], rows: NDArray[np.int64]) -> tuple[list[str], list[str]]:
    """Text and source of the rows, in their order; every batch but the last has _BATCH rows."""
    found: dict[int, dict[str, str]] = {}
    for number in np.unique(rows // _BATCH):
        inside = rows[rows // _BATCH == number]
        taken = batches[number].take(pa.array(inside - number * _BATCH)).to_pylist()
        found.update(zip(inside.tolist(), taken, strict=True))
    wanted = [found[row] for row in rows.tolist()]
    return [row["text"] for row in wanted], [row["source"] for row in wanted]
