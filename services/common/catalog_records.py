"""Records of what tenants have uploaded: datasets, corpora with their versions, and loads of corpora."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.corpus.states import CorpusState, LoadState, NearDuplicatesChoice
from tlm_core.errors import NotFound


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetSummary(_Record):
    """Counts of a dataset. rows: by split. selection: passages of its own selection, if it has one."""

    rows: dict[str, int] = {}
    labels: int = 0
    warnings: int = 0
    selection: int | None = None


class DatasetRecord(_Record):
    """One uploaded version of a dataset. Its id always means these bytes; its name means the newest version.

    raw: the uploaded files. report: folder with the validation report. options: fields of DatasetOptions that the
    uploader has set. created_at: Unix seconds.
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


class CorpusVersion(_Record):
    """One version of a corpus: its passages in the storage, and the state of its index.

    refused: passages of `count` that the index rejects. duplicates_dropped, near_duplicates_dropped: passages of the
    upload that `count` does not include. The latter and its seconds are None if nobody looked for them.
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
    addresses from which the other files are fetched. cut: the passages of the files that are split, in their order.
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
    error: dict[str, object] | None = None
    created_at: float
