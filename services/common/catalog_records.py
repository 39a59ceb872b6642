"""Records of what tenants have uploaded: data sets, corpora with their versions, loads of corpora."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from tlm_core.artifacts import ManifestRef
from tlm_core.errors import NotFound
from tlm_core.wire import CorpusState, LoadState, NearDuplicatesChoice


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetRecord(_Value):
    """One uploaded version of a data set; its id always means these bytes, its name the newest version.

    raw: the files as uploaded. report: folder with the validation report. options: what the uploader said of the data,
    as fields of DatasetOptions. summary: counts of rows, labels, warnings. created_at: Unix seconds.
    """

    id: str
    tenant: str
    name: str
    version: int
    raw: ManifestRef
    report: ManifestRef
    options: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    created_at: float


class CorpusVersion(_Value):
    """One version of a corpus: passages in storage, and whether the index holds them.

    refused: how many of `count` the index will never take. duplicates_dropped, near_duplicates_dropped: passages of the
    upload that `count` is without; the latter is None, and its seconds too, if nobody looked for them.
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
    error: dict[str, Any] | None = None


class CorpusRecord(_Value):
    """A corpus with its versions, newest first."""

    tenant: str
    name: str
    versions: tuple[CorpusVersion, ...] = ()

    def ready(self) -> CorpusVersion | None:
        """The newest version that can be searched."""
        return next((v for v in self.versions if v.state is CorpusState.READY), None)

    def version(self, version: str) -> CorpusVersion:
        """Raises NotFound."""
        for found in self.versions:
            if found.version == version:
                return found
        known = ", ".join(v.version for v in self.versions) or "none yet"
        raise NotFound(f"corpus '{self.name}' has no version '{version}'; it has {known}")


OPEN = frozenset({LoadState.QUEUED, LoadState.CUTTING, LoadState.INDEXING, LoadState.CANCELLING})


class CorpusLoad(_Value):
    """One upload on its way to a version. done and total count passages; total is 0 while unknown.

    near_duplicates: what becomes of passages that are nearly equal to an earlier one. upload: the files that were sent;
    sources: addresses to fetch the rest from.
    """

    id: str
    tenant: str
    corpus: str
    language: str
    near_duplicates: NearDuplicatesChoice = "keep"
    upload: ManifestRef
    sources: tuple[str, ...] = ()
    state: LoadState = LoadState.QUEUED
    version: str | None = None
    done: int = 0
    total: int = 0
    error: dict[str, Any] | None = None
    created_at: float
