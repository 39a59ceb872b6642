"""Records of what tenants have uploaded: datasets, corpora with their versions, and loads of corpora."""

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
    """Counts of a dataset. rows: count by split. selection: passages in the uploaded selection, if there is one."""

    rows: dict[str, int] = {}
    labels: int = 0
    warnings: int = 0
    selection: int | None = None


class DatasetRecord(_Record):
    """One uploaded version of a dataset. Its id identifies these files; its name identifies the newest version.

    raw: the uploaded files. report: folder with the validation report. options: fields of DatasetOptions that the
    uploader has set. created_at: Unix seconds. error: set only if this record replaces an unreadable one in a list.
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

    count: number of passages. refused: how many of them the index rejects. duplicates_dropped, near_duplicates_dropped:
    passages of the upload that `count` does not include. near_duplicates_seconds: time of the search for near
    duplicates. near_duplicates_*: None if the load keeps near duplicates.
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
        """Return the newest version that can be searched."""
        return next((version for version in self.versions if version.state is CorpusState.READY), None)

    def version(self, name: str) -> CorpusVersion:
        """Return a version. Raises NotFound."""
        for version in self.versions:
            if version.version == name:
                return version
        known = ", ".join(version.version for version in self.versions) or "none yet"
        raise NotFound(f"Corpus '{self.name}' has no version '{name}'. Its versions: {known}.")


OPEN = frozenset({LoadState.QUEUED, LoadState.CUTTING, LoadState.INDEXING, LoadState.CANCELLING})


class CorpusLoad(_Record):
    """The load of one upload into a corpus version. done and total count passages; total is 0 while unknown.

    near_duplicates: whether passages nearly equal to an earlier one are dropped. upload: the uploaded files. sources:
    addresses from which the loader fetches further files. cut: the passages of each file that is already split.
    waiting: the error of the latest try, while the load waits to try again; empty after progress. request_id: id of the
    request that uploaded the files, for logs.
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
    """Return a record from its JSON. name: how the error names the record. Raises UnreadableRecord."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise unreadable(name, error) from error


def needs_files(body: str) -> bool:
    """Return whether a load, from its JSON, may still read the files that it names: its upload, split or not."""
    try:
        return read_record(CorpusLoad, body, "a load").state in OPEN
    except UnreadableRecord:
        return True


# One unreadable record must not hide the others, so these functions return a stub with its error.


def listed_dataset(tenant: str, dataset_id: str, body: str) -> DatasetRecord:
    try:
        return read_record(DatasetRecord, body, f"dataset {dataset_id}")
    except UnreadableRecord as error:
        lost = ManifestRef(folder=f"{tenant}/datasets/{dataset_id}", digest="")
        return DatasetRecord(
            id=dataset_id, tenant=tenant, name="unreadable", version=0, raw=lost, report=lost, created_at=0.0,
            error=error.as_dict(),
        )  # fmt: skip


def listed_versions(tenant: str, corpus: str, bodies: Mapping[str, str]) -> tuple[CorpusVersion, ...]:
    """Return the versions of a corpus, newest first."""
    versions = [_listed_version(tenant, corpus, name, body) for name, body in bodies.items()]
    return tuple(sorted(versions, key=lambda version: (version.created_at, version.version), reverse=True))


def _listed_version(tenant: str, corpus: str, name: str, body: str) -> CorpusVersion:
    try:
        return read_record(CorpusVersion, body, f"version {name} of corpus '{corpus}'")
    except UnreadableRecord as error:
        lost = ManifestRef(folder=f"{tenant}/corpora/{corpus}/{name}", digest="")
        return CorpusVersion(
            version=name, language="unknown", passages=lost, count=0, state=CorpusState.FAILED, created_at=0.0,
            error=error.as_dict(),
        )  # fmt: skip


def listed_load(tenant: str, corpus: str, load_id: str, body: str) -> CorpusLoad:
    try:
        return read_record(CorpusLoad, body, f"load {load_id}")
    except UnreadableRecord as error:
        return CorpusLoad(
            id=load_id, tenant=tenant, corpus=corpus, language="unknown", upload=ManifestRef(folder="", digest=""),
            state=LoadState.FAILED, created_at=0.0, error=error.as_dict(),
        )  # fmt: skip
