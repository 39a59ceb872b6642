"""The records of the catalog: datasets, corpora with their versions, and loads of corpora."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.redis_client import unreadable
from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.corpus.states import CorpusState, LoadState, NearDuplicatesChoice
from tlm_core.errors import NotFound, UnreadableRecord


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetSummary(_Record):
    """Counts of a dataset. rows: such as {"train": 450}. selection: passages in the uploaded selection, or None."""

    rows: dict[str, int] = {}
    labels: int = 0
    warnings: int = 0
    selection: int | None = None


class DatasetRecord(_Record):
    """One version of a dataset. All versions have the same name, and each has its own id.

    raw: the uploaded files. report: the artifact with the validation report. options: the fields of DatasetOptions that
    differ from their defaults. created_at: Unix seconds. error: in lists, why the stored record is unreadable.
    """

    id: str
    tenant: str
    name: str
    version: int
    raw: ManifestRef
    report: ManifestRef
    options: dict[str, object] = {}
    summary: DatasetSummary = DatasetSummary()
    created_at: float
    error: dict[str, object] | None = Field(None, exclude=True)


class CorpusVersion(_Record):
    """One version of a corpus: its passages in the storage, and the state of its index.

    - count: number of passages. refused: how many of them the index refused. created_at: Unix seconds.
    - duplicates_dropped, near_duplicates_dropped: numbers of passages that the load dropped. `count` excludes them.
    - near_duplicates_dropped, near_duplicates_seconds (time of the search): None if the load keeps near duplicates.
    """

    version: str
    language: str
    passages: ManifestRef
    count: int
    refused: int = 0
    duplicates_dropped: int = 0
    near_duplicates_dropped: int | None = None
    near_duplicates_seconds: float | None = None
    state: CorpusState
    created_at: float
    error: dict[str, object] | None = None


class CorpusRecord(_Record):
    """A corpus with its versions, newest first."""

    tenant: str
    name: str
    versions: tuple[CorpusVersion, ...] = ()

    def ready(self) -> CorpusVersion | None:
        """Return the newest version that can be searched, or None."""
        return next((version for version in self.versions if version.state is CorpusState.READY), None)

    def version(self, name: str) -> CorpusVersion:
        """Return the version with this name. Raises NotFound."""
        for version in self.versions:
            if version.version == name:
                return version
        known = ", ".join(version.version for version in self.versions) or "none yet"
        raise NotFound(f"Corpus '{self.name}' has no version '{name}'. Its versions: {known}.")


OPEN = frozenset({LoadState.QUEUED, LoadState.CUTTING, LoadState.INDEXING, LoadState.CANCELLING})


class CorpusLoad(_Record):
    """The load of one upload into a corpus version.

    - near_duplicates: whether the load drops or keeps a passage that nearly equals an earlier passage.
    - sources: addresses of files besides those in `upload`. cut: one artifact with the passages of each split file.
    - done: number of passages that are processed in the current state. total: number of all passages, 0 if unknown.
    - waiting: why the load waits, or "". created_at: Unix seconds. request_id: of the request that created the load.
    """

    id: str
    tenant: str
    corpus: str
    language: str
    near_duplicates: NearDuplicatesChoice = "keep"
    upload: ManifestRef
    sources: tuple[str, ...] = ()
    cut: tuple[ManifestRef, ...] = ()
    state: LoadState = LoadState.QUEUED
    version: str | None = None
    done: int = 0
    total: int = 0
    waiting: str = ""
    error: dict[str, object] | None = None
    created_at: float
    request_id: str = ""


_AnyRecord = TypeVar("_AnyRecord", bound=_Record)


def read_record(kind: type[_AnyRecord], body: str, name: str) -> _AnyRecord:
    """Return the record in the JSON `body`. name: what the error calls the record. Raises UnreadableRecord."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise unreadable(name, error) from error


def needs_files(body: str) -> bool:
    """Return whether a load may still read its upload. Returns True for an unreadable record. body: record as JSON."""
    try:
        return read_record(CorpusLoad, body, "a load").state in OPEN
    except UnreadableRecord:
        return True


def _listed(kind: type[_AnyRecord], body: str, record: str, /, **stub: object) -> _AnyRecord:
    """Return the record in the JSON `body`. If it is unreadable, return a record with the fields `stub` and the error.

    So an unreadable record does not hide the rest of a list. record: its name in the error, such as "load load_1".
    """
    try:
        return read_record(kind, body, record)
    except UnreadableRecord as error:
        return kind.model_validate({**stub, "created_at": 0.0, "error": error.as_dict()})


def listed_dataset(tenant: str, dataset_id: str, body: str) -> DatasetRecord:
    lost = ManifestRef(folder=f"{tenant}/datasets/{dataset_id}", digest="")
    return _listed(
        DatasetRecord, body, f"dataset {dataset_id}",
        id=dataset_id, tenant=tenant, name="unreadable", version=0, raw=lost, report=lost,
    )  # fmt: skip


def listed_versions(tenant: str, corpus: str, bodies: Mapping[str, str]) -> tuple[CorpusVersion, ...]:
    """Return the versions of a corpus, newest first. bodies: name of the version → record as JSON."""
    versions = [
        _listed(
            CorpusVersion, body, f"version {name} of corpus '{corpus}'",
            version=name, language="unknown", count=0, state=CorpusState.FAILED,
            passages=ManifestRef(folder=f"{tenant}/corpora/{corpus}/{name}", digest=""),
        )
        for name, body in bodies.items()
    ]  # fmt: skip
    return tuple(sorted(versions, key=lambda version: (version.created_at, version.version), reverse=True))


def listed_load(tenant: str, corpus: str, load_id: str, body: str) -> CorpusLoad:
    return _listed(
        CorpusLoad, body, f"load {load_id}",
        id=load_id, tenant=tenant, corpus=corpus, language="unknown", upload=ManifestRef(folder="", digest=""),
        state=LoadState.FAILED,
    )  # fmt: skip
