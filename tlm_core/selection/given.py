"""The selector `given`: a selection that the user uploaded in a dataset, such as a CSV file of the authors of TLM.

`validate` writes the selection into the task, as a Parquet file with the columns `id`, `text`, `source` and `rank`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tlm_core.corpus.files import Row, format_of, read_rows
from tlm_core.corpus.passages import Passage, encodable, passage_id
from tlm_core.errors import CorruptArtifact, InvalidRequest
from tlm_core.parquet import open_parquet
from tlm_core.selection.candidates import Candidate, CandidateFilter
from tlm_core.selection.interface import Selected, SelectionInputs
from tlm_core.tables.findings import LISTED_PER_CODE, Findings

GIVEN = "selection.parquet"
GIVEN_PART = "selection"
# The datasets that the authors of TLM released name the file by its scale: small_external.csv, and so on.
_NAME = re.compile(rf"{GIVEN_PART}|((small|medium|large)_)?external")
_FORMATS = ("delimited", "json", "parquet")
_SOURCE = "given"
_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("rank", pa.int32())])
_TEXTS = pa.schema([("text", pa.large_string()), ("source", pa.large_string())])
_BATCH = 4096
_MAX_RANK = 2**31 - 2


def uploaded_selection(inputs: SelectionInputs, accept: CandidateFilter) -> Selected:
    """Select the uploaded passages up to rank `top_k`, or all passages if they have no ranks.

    The batches raise CorruptArtifact if the file is damaged.
    """
    assert isinstance(inputs.source, Path), "The selector 'given' reads a file."
    return Selected(accept.batches(_candidates(inputs.source, inputs.params.top_k)))


def given_part(source: object) -> Path | None:
    """Return the path of the selection file of a dataset, or None.

    In a mapping, the selection has the key `selection`. In a folder, its file has the name `selection`, `external` or
    `SCALE_external`, such as `small_external.csv`. Raises InvalidRequest if a folder has several such files.
    """
    if isinstance(source, Mapping):
        return Path(source[GIVEN_PART]) if GIVEN_PART in source else None
    if not isinstance(source, Path) or not source.is_dir():
        return None
    files = [path for path in sorted(source.iterdir()) if path.is_file() and is_given(path)]
    if len(files) > 1:
        raise InvalidRequest(f"Both {files[0].name} and {files[1].name} are selections. Remove one of them.")
    return files[0] if files else None


def is_given(path: Path) -> bool:
    """Return whether a file has the name of a selection, such as `selection.csv` or `small_external.csv`."""
    return _NAME.fullmatch(path.name.split(".")[0].lower()) is not None


def write_given(path: Path, target: Path) -> int:
    """Write the passages of `path` (csv, tsv, jsonl or parquet) to the Parquet file `target` and return their number.

    Columns other than `text`, `source` and `rank` are ignored. Equal texts become one passage with the lowest of their
    ranks. Blank texts are skipped. Passages are sorted by rank, then id. Without ranks, they are in the order of the
    file. If the lowest rank is 0, every rank is increased by one. Raises InvalidRequest for another file type, and
    InvalidDataset with all data errors.
    """
    if format_of(path) not in _FORMATS:
        raise InvalidRequest(
            f"Unsupported file type of the selection '{path.name}'. Expected csv, tsv, jsonl or parquet."
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".given-") as folder:
        texts = Path(folder) / "texts.arrow"
        ids, ranks = _read(path, texts)
        _write_ordered(target, texts, ids, ranks)
    return len(ids)


def _candidates(path: Path, top_k: int) -> Iterator[list[Candidate]]:
    """Yield the passages in a file of `write_given` up to rank `top_k`, or all passages if they have no ranks."""
    try:
        with open_parquet(path) as file:
            position = 0
            for batch in file.iter_batches(_BATCH):
                candidates = []
                for row in batch.to_pylist():
                    rank = row.pop("rank")
                    if rank is None or rank <= top_k:
                        candidates.append(Candidate(position, rank or position + 1, None, Passage(**row)))
                        position += 1
                yield candidates
    except (pa.ArrowException, OSError) as error:
        raise CorruptArtifact(f"Cannot read {path}: {error}. Retry the job: tlm retry JOB.") from error


def _read(path: Path, texts: Path) -> tuple[list[str], NDArray[np.int32] | None]:
    """Copy the distinct texts to the Arrow file `texts`. Return their ids and best ranks (None: no ranks)."""
    findings = Findings("the selection", stop_at=LISTED_PER_CODE)
    numbers: dict[str, int] = {}
    ranks: list[int | None] = []

    def distinct() -> Iterator[tuple[str, str]]:
        for row in read_rows(path, None, findings):
            text, rank = encodable(row.text), _rank(row, path.name, findings)
            number = numbers.setdefault(passage_id(text), len(ranks))
            if number < len(ranks):
                ranks[number] = min((r for r in (ranks[number], rank) if r is not None), default=None)
            else:
                ranks.append(rank)
                yield text, encodable(str(row.source)) if row.source is not None else _SOURCE

    with pa.OSFile(str(texts), "wb") as sink, pa.ipc.new_file(sink, _TEXTS) as writer:
        stream = distinct()
        while batch := list(islice(stream, _BATCH)):
            columns = [pa.array(column, pa.large_string()) for column in zip(*batch, strict=True)]
            writer.write_batch(pa.record_batch(columns, schema=_TEXTS))
    unranked = ranks.count(None)
    if 0 < unranked < len(ranks):
        message = f"{unranked} passages have no rank, but others do. Add a rank to every passage, or to none."
        findings.fault("missing_rank", f"{path.name}: {message}", column="rank")
    if not ranks:
        findings.fault("no_rows", f"{path.name} contains no passage. Add passages, or remove the file.")
    findings.check()
    if unranked:
        return list(numbers), None
    array = np.array(ranks, np.int32)
    return list(numbers), array + (array.min() == 0)


def _rank(row: Row, name: str, findings: Findings) -> int | None:
    value = row.rank
    if value is None:
        return None
    try:
        rank = int(value) if isinstance(value, str) else value
    except ValueError:
        rank = None
    if isinstance(rank, float) and rank.is_integer():
        rank = int(rank)
    if isinstance(rank, int) and not isinstance(rank, bool) and 0 <= rank <= _MAX_RANK:
        return rank
    message = f"Row {row.number} of {name}: invalid rank {value!r}. Expected a whole number from 0 to {_MAX_RANK}."
    findings.fault("not_a_rank", message, row=row.number, column="rank")
    return None


def _write_ordered(target: Path, texts: Path, ids: list[str], ranks: NDArray[np.int32] | None) -> None:
    id_column = pa.array(ids, pa.string())
    order = np.arange(len(ids))
    if ranks is not None:
        table = pa.table({"rank": ranks, "id": id_column})
        order = pc.sort_indices(table, [("rank", "ascending"), ("id", "ascending")]).to_numpy().astype(np.int64)
    with pa.memory_map(str(texts)) as source, pq.ParquetWriter(target, _SCHEMA, compression="zstd") as writer:
        file = pa.ipc.open_file(source)
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            rank = pa.nulls(len(part), pa.int32()) if ranks is None else pa.array(ranks[part])
            columns = [id_column.take(pa.array(part)), *_rows(batches, part), rank]
            writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))


def _rows(batches: list[pa.RecordBatch], rows: NDArray[np.int64]) -> list[pa.Array]:
    """Return the texts and the sources at the indices `rows`. Each batch has _BATCH rows, except the last batch."""
    by_row: dict[int, dict[str, str]] = {}
    for number in np.unique(rows // _BATCH):
        in_batch = rows[rows // _BATCH == number]
        values = batches[number].take(pa.array(in_batch - number * _BATCH)).to_pylist()
        by_row.update(zip(in_batch.tolist(), values, strict=True))
    return [pa.array([by_row[row][name] for row in rows.tolist()], pa.string()) for name in ("text", "source")]
