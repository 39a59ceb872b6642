"""Where the indexes of corpus versions live: folders of this machine, or an OpenSearch cluster."""

from __future__ import annotations

import fcntl
import shutil
import threading
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from services.retriever.bulk import Refused, Taken
from services.retriever.cluster import Cluster
from services.retriever.opensearch_index import (
    SCHEMA_VERSION,
    OpenSearchIndex,
    current_alias,
    index_body,
    load_alias,
    slug,
)
from tlm_core.corpus.passages import Passage
from tlm_core.errors import AlreadyRunning, Conflict, IndexMismatch, InvalidRequest, NotFound
from tlm_core.selection.index import PassageIndex
from tlm_core.selection.tantivy_index import TantivyIndex
from tlm_core.selection.text_analysis import analysis_of


class CorpusKey(NamedTuple):
    """A version of a tenant's corpus. A version's passages never change."""

    tenant: str
    name: str
    version: str

    def __str__(self) -> str:
        return f"corpus '{self.name}', version {self.version}"

    @property
    def slug(self) -> str:
        """A name for files and indexes: readable, in lower case, and different for every key."""
        return slug(f"{self.name} {self.version}", tuple(self))


class Filling(PassageIndex, Protocol):
    """An index while it is filled. Besides what PassageIndex raises: InvalidRequest if too many passages are refused.

    identity: differs for every index ever made. taken, checksum, refused: how far it is, as in `Taken`.
    """

    @property
    def identity(self) -> str: ...
    @property
    def taken(self) -> int: ...
    @property
    def checksum(self) -> int: ...
    @property
    def refused(self) -> Sequence[Refused]: ...

    def go_on(self, at: Taken) -> None:
        """Take it that the index holds what `at` says; before the first `add`, which then begins behind that."""
        ...

    def flush(self) -> None:
        """Wait until all that was added is taken."""
        ...


class CorpusIndexes(Protocol):
    """Finds, starts and drops the indexes of corpus versions. Raises what PassageIndex raises."""

    def open(self, key: CorpusKey, *, patient: bool = False) -> PassageIndex:
        """The whole index of `key`. Raises NotFound if there is none or it was never finished.

        patient: what it does waits out a cluster that is away; else it tells at once.
        """
        ...

    def begin(self, key: CorpusKey, language: str) -> Filling:
        """An index of `key` to fill and commit; what an earlier, unfinished load left may be in it already."""
        ...

    def drop(self, key: CorpusKey) -> None:
        """Remove the index of `key`, whole or not; none is no error."""
        ...

    def check(self) -> None:
        """Raise if no index could be used now."""
        ...


class _Anew(TantivyIndex):
    """An embedded index under way. It is always filled from the first passage on, and takes whatever comes."""

    taken = 0
    checksum = 0
    refused: Sequence[Refused] = ()

    def add(self, batch: Sequence[Passage]) -> None:
        super().add(batch)
        self.taken += len(batch)

    @cached_property
    def identity(self) -> str:
        return uuid.uuid4().hex

    def go_on(self, at: Taken) -> None:
        raise Conflict(f"an embedded index cannot go on at passage {at.taken}; fill it from the start")

    def flush(self) -> None:
        return


class EmbeddedIndexes:
    """tantivy indexes in a folder of this machine, one process at a time.

    The folder is a cache: what is lost is built again from the storage. Raises AlreadyRunning if another process
    has the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._opened: dict[CorpusKey, TantivyIndex] = {}
        self._lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        self._owned = open(root / "lock", "w")  # noqa: SIM115 - held as long as the process lives
        try:
            fcntl.flock(self._owned, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._owned.close()
            raise AlreadyRunning(f"another retriever uses {root}; give this one a scratch folder of its own") from error

    def open(self, key: CorpusKey, *, patient: bool = False) -> PassageIndex:  # noqa: ARG002 - a folder is never away
        with self._lock:
            if key not in self._opened:
                self._opened[key] = TantivyIndex.open(self._folder(key))
            return self._opened[key]

    def begin(self, key: CorpusKey, language: str) -> Filling:
        self.drop(key)
        return cast(_Anew, _Anew.create(self._folder(key), language))

    def drop(self, key: CorpusKey) -> None:
        # A search under way keeps its files: they vanish from the folder, not from under it.
        with self._lock:
            self._opened.pop(key, None)
            if (folder := self._folder(key)).exists():
                shutil.rmtree(folder)

    def check(self) -> None:
        return

    def close(self) -> None:
        for index in self._opened.values():
            index.close()
        self._owned.close()

    def _folder(self, key: CorpusKey) -> Path:
        return self._root / key.slug


class OpenSearchIndexes:
    """Indexes `tlm-…` on a cluster. A load that was broken off goes on in the index that it left."""

    def __init__(self, cluster: Cluster, *, shards: int) -> None:
        self._cluster = cluster
        self._hurried = cluster.with_patience(0)
        self._shards = shards

    def open(self, key: CorpusKey, *, patient: bool = False) -> PassageIndex:
        index = self._find(key, self._cluster if patient else self._hurried)
        if not index.ready:
            raise NotFound(f"{key} is not loaded to its end; load it again")
        return index

    def begin(self, key: CorpusKey, language: str) -> Filling:
        self._cluster.version()
        analysis = analysis_of(language)
        try:
            index = self._find(key, self._cluster)
        except NotFound:
            pass
        else:
            if index.analysis == analysis and not index.ready:
                # A load that was killed while it committed may have closed the index for writing already.
                self._cluster.call("PUT", f"/{index.name}/_settings", body={"index": {"blocks": {"write": None}}})
                return index
            self.drop(key)
        meta = {"schema": SCHEMA_VERSION, **key._asdict(), "analysis": analysis, "state": "loading"}
        body = {**index_body(meta, analysis, self._shards), "aliases": {load_alias(_name(key)): {}}}
        try:
            self._cluster.call("PUT", f"/{_name(key)}", body=body)
        except InvalidRequest as error:
            # Another retriever was first, or the answer to our own first try was lost; whoever made it, `_find` judges.
            if "resource_already_exists" not in error.message:
                raise
        return self._find(key, self._cluster)

    def drop(self, key: CorpusKey) -> None:
        with suppress(NotFound):
            self._hurried.call("DELETE", f"/{_name(key)}")
        self._name_current(key)

    def _name_current(self, dropped: CorpusKey) -> None:
        """If the corpus's alias went with the index that was dropped, it names the newest of the others."""
        alias = current_alias(dropped.tenant, dropped.name)
        try:
            self._hurried.call("GET", f"/_alias/{alias}")
            return
        except NotFound:
            params = {"filter_path": "*.mappings._meta.tlm,*.settings.index.creation_date"}
            found = self._hurried.call("GET", "/tlm-*", params=params)
        made: dict[str, int] = {}
        for name, entry in (found or {}).items():
            meta = entry.get("mappings", {}).get("_meta", {}).get("tlm", {})
            if (meta.get("tenant"), meta.get("name"), meta.get("state")) == (dropped.tenant, dropped.name, "ready"):
                made[name] = int(entry["settings"]["index"]["creation_date"])
        if made:
            actions = [{"add": {"index": max(made, key=made.__getitem__), "alias": alias}}]
            self._hurried.call("POST", "/_aliases", body={"actions": actions})

    def check(self) -> None:
        self._hurried.version()
        self._hurried.call("GET", "/_cluster/health", params={"filter_path": "status"})

    def close(self) -> None:
        self._cluster.close()

    @staticmethod
    def _find(key: CorpusKey, cluster: Cluster) -> OpenSearchIndex:
        """The index of `key`, whole or not. Raises NotFound, or IndexMismatch if it is not one of ours."""
        name = _name(key)
        cluster.version()
        found = cluster.call("GET", f"/{name}")[name]
        meta = found["mappings"].get("_meta", {}).get("tlm", {})
        shards = int(found["settings"]["index"]["number_of_shards"])
        if meta.get("schema") != SCHEMA_VERSION or any(
            meta.get(part) != value for part, value in key._asdict().items()
        ):
            raise IndexMismatch(f"index {name} is not of this release; delete it and load the corpus again")
        expected = index_body(meta, meta["analysis"], shards)
        properties = expected["mappings"]["properties"]
        similarity = found["settings"]["index"].get("similarity", {}).get("default", {})
        same_similarity = similarity.get("type") == "BM25" and all(
            float(similarity.get(part, "nan")) == value
            for part, value in expected["settings"]["similarity"]["default"].items()
            if part != "type"
        )
        if not same_similarity or not _covers(found["mappings"].get("properties", {}), properties):
            raise IndexMismatch(f"index {name} has a mapping that is not ours; delete it and load the corpus again")
        return OpenSearchIndex(cluster, name, meta, shards, str(found["settings"]["index"].get("uuid", "")))


def _name(key: CorpusKey) -> str:
    return f"tlm-{key.slug}"


_DEFAULTS = {"norms": True, "doc_values": True}  # the server leaves out what it would take anyway


def _covers(found: dict[str, dict[str, object]], wanted: dict[str, dict[str, object]]) -> bool:
    """Whether the mapping has our fields with our options, and no others."""
    return found.keys() == wanted.keys() and all(
        found[field].get(option, _DEFAULTS.get(option)) == value
        for field, options in wanted.items()
        for option, value in options.items()
    )
