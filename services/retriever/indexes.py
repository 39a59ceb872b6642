"""The indexes of all corpus versions: folders on this machine, or indexes of an OpenSearch cluster."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from services.retriever.bulk import LoadCursor
from services.retriever.cluster import Cluster
from services.retriever.opensearch_index import SCHEMA_VERSION, OpenSearchIndex, index_body, load_alias
from tlm_core.corpus.passages import Passage
from tlm_core.errors import AlreadyRunning, Conflict, IndexMismatch, InvalidRequest, NotFound
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.tantivy_index import TantivyIndex
from tlm_core.selection.text_analysis import analysis_of

_CHECK_SECONDS = 4  # for each of the two requests; Prometheus expects the metrics within 10 s


class CorpusKey(NamedTuple):
    """Identifies a version of a tenant's corpus. The passages of a version never change."""

    tenant: str
    name: str
    version: str

    def __str__(self) -> str:
        return f"corpus '{self.name}', version {self.version}"

    @property
    def slug(self) -> str:
        """A name for files and indexes: readable, in lower case, and unique for the key."""
        plain = re.sub("[^a-z0-9]+", "-", f"{self.name} {self.version}".lower()).strip("-")[:60]
        return f"{plain}-{hashlib.sha256(repr(tuple(self)).encode()).hexdigest()[:16]}"


class LoadingIndex(PassageIndex, Protocol):
    """An index during its load. Raises the errors of PassageIndex, and InvalidRequest if too many passages are refused.

    identity: unique id of the index. Two indexes of the same name have different ids. cursor: progress of the load.
    """

    @property
    def identity(self) -> str: ...
    @property
    def cursor(self) -> LoadCursor: ...

    def resume(self, cursor: LoadCursor) -> None:
        """Continue the interrupted load of this index at `cursor`. Call this method before the first `add`."""
        ...

    def flush(self) -> None:
        """Wait until all added passages are written."""
        ...


class CorpusIndexes(Protocol):
    """Opens, creates and deletes the indexes of corpus versions. Raises the errors of PassageIndex."""

    def open(self, key: CorpusKey, *, wait: bool = False) -> PassageIndex:
        """Return the complete index of `key`. Raises NotFound if there is none.

        wait: whether this method and the returned index retry requests while the cluster is unavailable.
        """
        ...

    def begin(self, key: CorpusKey, language: str) -> LoadingIndex:
        """Return an index of `key` that accepts passages. It may contain the passages of an interrupted load."""
        ...

    def drop(self, key: CorpusKey) -> None:
        """Delete the index of `key`, complete or not, if it exists."""
        ...

    def check(self) -> bool:
        """Return whether all indexes have all shards. Raise a TLMError if no index can be used at the moment."""
        ...


class _LoadingTantivyIndex(TantivyIndex):
    """An embedded index during its load. Each load starts at the first passage. No passage is refused."""

    cursor = LoadCursor()

    def add(self, batch: Sequence[Passage]) -> None:
        super().add(batch)
        self.cursor = LoadCursor(self.cursor.position + len(batch))

    @cached_property
    def identity(self) -> str:
        return uuid.uuid4().hex

    def resume(self, cursor: LoadCursor) -> None:
        raise Conflict(f"An embedded index cannot resume at passage {cursor.position}. Load it from the start.")

    def flush(self) -> None:
        return


class EmbeddedIndexes:
    """Stores tantivy indexes in the local folder `root`. Raises AlreadyRunning if another process uses this folder.

    The folder is a cache: the service builds a lost index again from the storage.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._opened: dict[CorpusKey, TantivyIndex] = {}
        self._lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        self._lock_file = open(root / "lock", "w")  # noqa: SIM115 - closed by close
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            raise AlreadyRunning(f"Another retriever uses {root}. Stop it, or change TLM_RETRIEVER_SCRATCH.") from error

    def open(self, key: CorpusKey, *, wait: bool = False) -> PassageIndex:  # noqa: ARG002 - a folder is always available
        with self._lock:
            if key not in self._opened:
                self._opened[key] = TantivyIndex.open(self._folder(key))
            return self._opened[key]

    def begin(self, key: CorpusKey, language: str) -> LoadingIndex:
        self.drop(key)
        return _LoadingTantivyIndex.create(self._folder(key), language)

    def drop(self, key: CorpusKey) -> None:
        # A running search keeps its open files.
        with self._lock:
            self._opened.pop(key, None)
            if (folder := self._folder(key)).exists():
                shutil.rmtree(folder)

    def check(self) -> bool:
        return True

    def close(self) -> None:
        for index in list(self._opened.values()):  # a late request may still open or drop an index
            index.close()
        self._lock_file.close()

    def _folder(self, key: CorpusKey) -> Path:
        return self._root / key.slug


class OpenSearchIndexes:
    """Stores indexes with names `tlm-…` on a cluster. An interrupted load resumes in the same index."""

    def __init__(self, cluster: Cluster, *, shards: int) -> None:
        self._cluster = cluster
        self._impatient = cluster.without_retries()
        self._shards = shards

    def open(self, key: CorpusKey, *, wait: bool = False) -> PassageIndex:
        index = self._read(key, self._cluster if wait else self._impatient)
        if not index.ready:
            raise NotFound(f"The index of {key} is not complete. Load the corpus again.")
        return index

    def begin(self, key: CorpusKey, language: str) -> LoadingIndex:
        self._cluster.version()
        analysis = analysis_of(language)
        try:
            index = self._read(key, self._cluster)
        except NotFound:
            pass
        else:
            if index.analysis == analysis and not index.ready:
                # A load that was killed during its commit may have closed the index for writing.
                self._cluster.call("PUT", f"/{index.name}/_settings", body={"index": {"blocks": {"write": None}}})
                return index
            self.drop(key)
        mark = {"schema": SCHEMA_VERSION, **key._asdict(), "analysis": analysis, "state": "loading"}
        body = {**index_body(mark, analysis, self._shards), "aliases": {load_alias(_name(key)): {}}}
        try:
            self._cluster.call("PUT", f"/{_name(key)}", body=body)
        except InvalidRequest as error:
            # Another retriever created the index, or the response to the first try was lost. `_read` checks the index.
            if "resource_already_exists" not in error.message:
                raise
        return self._read(key, self._cluster)

    def drop(self, key: CorpusKey) -> None:
        with suppress(NotFound):
            self._impatient.call("DELETE", f"/{_name(key)}")

    def check(self) -> bool:
        limit: dict[str, object] = {"request_timeout": _CHECK_SECONDS}
        self._impatient.version(limit)
        health = self._impatient.call("GET", "/_cluster/health/tlm-*", params={"filter_path": "status"} | limit)
        return bool(health["status"] != "red")

    def close(self) -> None:
        self._cluster.close()

    @staticmethod
    def _read(key: CorpusKey, cluster: Cluster) -> OpenSearchIndex:
        """Return the index of `key`, even if incomplete. Raises NotFound, or IndexMismatch for an unexpected format."""
        name = _name(key)
        cluster.version()
        description = cluster.call("GET", f"/{name}")[name]
        mappings, settings = description["mappings"], description["settings"]["index"]
        mark = mappings.get("_meta", {}).get("tlm", {})
        if {**mark, "schema": SCHEMA_VERSION, **key._asdict()} != mark:
            raise IndexMismatch(
                f"Another release or another program wrote the index {name}, and this release cannot read it. Delete "
                "the index. Then load the corpus again."
            )
        shards = int(settings["number_of_shards"])
        expected = index_body(mark, mark["analysis"], shards)
        similarity = expected["settings"]["similarity"]["default"]
        if not _same_similarity(settings.get("similarity", {}).get("default", {}), similarity) or not _same_fields(
            mappings.get("properties", {}), expected["mappings"]["properties"]
        ):
            raise IndexMismatch(
                f"The mapping or similarity of index {name} differs from that of this release of the service. Delete "
                "the index. Then load the corpus again."
            )
        return OpenSearchIndex(cluster, name, mark, shards, str(settings.get("uuid", "")))


def _name(key: CorpusKey) -> str:
    return f"tlm-{key.slug}"


def _same_similarity(actual: Mapping[str, Any], expected: Mapping[str, object]) -> bool:
    """Return whether both similarity settings are BM25 with equal parameters. The server returns numbers as strings."""
    return actual.get("type") == "BM25" and all(
        float(actual.get(name, "nan")) == value for name, value in expected.items() if name != "type"
    )


_DEFAULTS = {"norms": True, "doc_values": True}  # the server omits options with their default values


def _same_fields(actual: Mapping[str, Mapping[str, object]], expected: Mapping[str, Mapping[str, object]]) -> bool:
    """Return whether the mapping `actual` has exactly the expected fields, with the expected options."""
    return actual.keys() == expected.keys() and all(
        actual[field].get(option, _DEFAULTS.get(option)) == value
        for field, options in expected.items()
        for option, value in options.items()
    )
