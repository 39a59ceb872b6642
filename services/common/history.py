"""The moved entries: events, metrics and log lines of jobs that `Archive` has moved from Redis to the storage."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from services.common.logs import log_context
from tlm_core.artifacts.hashing import canonical_json
from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.errors import CorruptArtifact, NotFound

if TYPE_CHECKING:
    from tlm_core.artifacts.store import ArtifactStore

log = logging.getLogger(__name__)

STREAMS = ("events", "metrics", "logs")
REFS = "refs"  # references of artifacts and checkpoints, which leave the record of a job that ended
# Limit for logs and for metrics. A job that writes more loses its oldest log lines, and its curves have fewer points.
_MAX_ENTRIES = 200_000

_METADATA = frozenset({"id", "at", "attempt", "node", "stage", "step"})  # fields without measured values

Row = tuple[str, dict[str, str]]  # id and fields of an entry, as XRANGE returns them


class Moved(BaseModel):
    """Where the moved entries of a job are. ref: the artifact with the entries. last: stream → id of its last entry."""

    model_config = ConfigDict(frozen=True)

    ref: ManifestRef
    last: dict[str, str]


@dataclass(frozen=True)
class History:
    """Reads and writes the moved entries of jobs. Each job has one artifact, and each move replaces this artifact."""

    artifacts: ArtifactStore

    def read(self, moved: Moved, stream: str, after: str = "0") -> list[Row]:
        """Return the moved entries of a stream with an id above `after`, in order.

        Raises NotFound if the file is lost or replaced by a later move, and CorruptArtifact if the file is damaged.
        """
        if position(moved.last.get(stream, "0")) <= position(after):
            return []
        rows = _read_refs(self.artifacts, moved.ref) if stream == REFS else _read(self.artifacts, moved.ref, stream)
        return [row for row in rows if position(row[0]) > position(after)]

    def write(
        self,
        tenant: str,
        job: str,
        earlier: Moved | None,
        rows: Mapping[str, Sequence[Row]],
        is_current: Callable[[], bool] = lambda: True,
    ) -> Moved:
        """Write the entries of `earlier`, followed by `rows`, to a new artifact. Returns the new `Moved`.

        rows: stream → new entries. is_current: returns False if another process has replaced `earlier`.

        - If a file of `earlier` is missing, raise NotFound if `is_current` returns False. Else omit its entries.
        - Of more than 200,000 log lines, omit the oldest. Reduce more than 200,000 metric points to about 100,000.
        - Raises CorruptArtifact if a file of `earlier` is damaged, and the errors of ArtifactStore.
        """
        folder = f"{folder_of(tenant, job)}/{uuid.uuid4().hex}"
        last = dict(earlier.last) if earlier else {}
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "history"
            source.mkdir()
            for stream in (*STREAMS, REFS):
                entries = [*self._earlier_rows(job, earlier, stream, is_current), *rows.get(stream, ())]
                last |= {stream: entries[-1][0]} if entries else {}
                if len(entries) > _MAX_ENTRIES and stream in ("metrics", "logs"):
                    entries = _thinned(entries) if stream == "metrics" else entries[-_MAX_ENTRIES:]
                with gzip.open(source / f"{stream}.gz", "wt", encoding="utf-8") as file:
                    file.writelines(canonical_json(entry) + "\n" for entry in entries)
            ref = self.artifacts.write(folder, source, artifact=job, stage="history")
        return Moved(ref=ref, last=last)

    def _earlier_rows(self, job: str, earlier: Moved | None, stream: str, is_current: Callable[[], bool]) -> list[Row]:
        """Return the entries of a stream in `earlier`, or [] if their file is lost. May raise NotFound: see `write`."""
        try:
            return self.read(earlier, stream) if earlier else []
        except NotFound as error:
            if not is_current():
                raise
            with log_context(job_id=job):
                log.error("The storage has lost the older %s of job %s: %s", stream, job, error)
            return []

    def delete(self, moved: Moved) -> None:
        self.artifacts.delete(moved.ref.folder)


def values_of(point: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """Yield (name, value) for each measured value of a metric point, such as ("mlm", 6.2)."""
    for name, value in point.items():
        if name not in _METADATA and not isinstance(value, bool) and isinstance(value, int | float):
            yield name, float(value)


def _thinned(entries: Sequence[Row]) -> list[Row]:
    """Return about 100,000 metric points: the lowest and highest point of each curve in equal ranges of steps.

    If the ranges had equal numbers of points instead, each call would thin the beginning of a curve again.
    """
    curves: dict[tuple[str, str], list[tuple[float, float, int]]] = {}
    for index, (_, fields) in enumerate(entries):
        point = json.loads(fields["data"])
        for name, value in values_of(point):
            step = point.get("step")
            x = float(step) if isinstance(step, int | float) else float(index)
            curves.setdefault((str(point.get("node", "")), name), []).append((x, value, index))
    ranges = max(1, _MAX_ENTRIES // 4 // max(1, len(curves)))
    indices = {index for curve in curves.values() for index in _extremes(curve, ranges)}
    return [entries[index] for index in sorted(indices)]


def _extremes(curve: Sequence[tuple[float, float, int]], ranges: int) -> Iterator[int]:
    """Yield the indices of the lowest and the highest point of a curve in each of `ranges` equal ranges of steps.

    curve: (step, value, index) of each point.
    """
    least: dict[int, tuple[float, int]] = {}
    greatest: dict[int, tuple[float, int]] = {}
    width = max(step for step, _, _ in curve) / ranges or 1.0
    for step, value, index in curve:
        part = int(step / width)
        least[part] = min(least.get(part, (value, index)), (value, index))
        greatest[part] = max(greatest.get(part, (value, index)), (value, index))
    yield from (index for _, index in (*least.values(), *greatest.values()))


@lru_cache(maxsize=4)  # Charts read a series in pages of the same file.
def _read(artifacts: ArtifactStore, ref: ManifestRef, stream: str) -> list[Row]:
    path = artifacts.localize(ref) / f"{stream}.gz"
    with artifacts.errors(f"reading {path}"):
        return _rows(path.read_bytes(), str(path))


@lru_cache(maxsize=64)  # Each prediction reads the references of its job, even while the storage is unavailable.
def _read_refs(artifacts: ArtifactStore, ref: ManifestRef) -> list[Row]:
    # The sweeper reads the references of all jobs. A local copy of each history would fill the disk.
    name = f"{REFS}.gz"
    with artifacts.errors(f"reading {ref.folder}/{name}"), artifacts.open(ref, name) as file:
        return _rows(file.read(), f"{ref.folder}/{name}")


def _rows(content: bytes, path: str) -> list[Row]:
    try:
        if not content:
            raise EOFError("the file is empty")
        return [(stream_id, fields) for stream_id, fields in map(json.loads, gzip.decompress(content).splitlines())]
    except (EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        message = f"{path} is damaged: {error}. Restore this file from a backup, or delete the job."
        raise CorruptArtifact(message) from error


def folder_of(tenant: str, job: str) -> str:
    """Return the storage folder for the moved entries of a job."""
    return f"{tenant}/jobs/{job}"


def position(stream_id: str) -> tuple[int, int]:
    """Return the two numbers of a stream id: (1700, 2) for "1700-2". These pairs sort like the ids in Redis."""
    milliseconds, _, number = stream_id.partition("-")
    return int(milliseconds), int(number or 0)


def entry_of(tenant: str, artifact: str, ref: ManifestRef) -> str:
    """Return `ref` as Redis stores it: "DIGEST NAME" for the folder TENANT/artifacts/ARTIFACT/NAME, else as JSON."""
    parent, _, name = ref.folder.rpartition("/")
    if parent == f"{tenant}/artifacts/{artifact}":
        return f"{ref.digest} {name}"
    return canonical_json(ref.model_dump(mode="json"))


def ref_of(tenant: str, artifact: str, entry: str) -> ManifestRef:
    """Return the reference that `entry_of` encoded as `entry`. Earlier releases wrote each reference as JSON."""
    if entry.startswith("{"):
        return ManifestRef.model_validate_json(entry)
    digest, _, name = entry.partition(" ")
    return ManifestRef(folder=f"{tenant}/artifacts/{artifact}/{name}", digest=digest)


def moved_ref(row: Mapping[str, str]) -> ManifestRef:
    """Return the reference of an artifact. row: the fields of the artifact's entry in the stream REFS."""
    return ManifestRef(folder=row["folder"], digest=row["digest"])


def packed(fields: Mapping[str, str]) -> str:
    """Return the fields of a record as one compressed text, for the field `packed` of the record."""
    return base64.b85encode(zlib.compress(canonical_json(fields).encode(), 9)).decode()


def unpacked(fields: Mapping[str, str]) -> dict[str, str]:
    """Return a record's fields without `history`. Replaces `packed` by the compressed fields that `packed` contains."""
    inner = fields.get("packed")
    own = {name: value for name, value in fields.items() if name not in ("packed", "history")}
    return own if inner is None else {**json.loads(zlib.decompress(base64.b85decode(inner))), **own}
