"""Loads of corpus versions into their indexes: asked for again and again, done once, resumed after any death."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from services.retriever.indexes import CorpusIndexes, CorpusKey
from services.retriever.passages_in import CorpusFiles
from tlm_core.artifacts import ArtifactStore, storage_errors
from tlm_core.errors import IndexMismatch, IndexUnavailable, NotFound, TLMError, error_from_dict
from tlm_core.selection.index import PassageIndex

log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0


@dataclass
class Load:
    """How far one load is: `loaded` of `count` passages. count is 0 until the files were looked at."""

    folder: str
    language: str
    state: Literal["loading", "ready", "failed"] = "loading"
    count: int = 0
    loaded: int = 0
    error: dict[str, Any] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


class _Stopped(Exception):
    """The load was dropped, or the process ends. Control flow."""


class CorpusLoads:
    """Keeps indexes equal to what lies in storage. One load runs at a time; thread-safe.

    Where a version's passages lie is noted in the storage as well, so an index that was lost is built again without
    anyone's asking.
    """

    def __init__(self, indexes: CorpusIndexes, store: ArtifactStore, stop: threading.Event) -> None:
        self._indexes = indexes
        self._store = store
        self._stop = stop
        self._lock = threading.Lock()
        self._loads: dict[CorpusKey, Load] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="load")

    def put(self, key: CorpusKey, folder: str, language: str) -> None:
        """Load `key` from `folder` unless it is loaded or loading. A load that failed is begun again."""
        load = self._loads.get(key)
        if (load is None or load.state != "loading") and self._opened(key) is None:
            self._note(key, folder, language)
            self._begin(key, folder, language)

    def get(self, key: CorpusKey) -> Load:
        """How far `key` is. Raises NotFound if it is neither loaded nor was asked for here."""
        load = self._loads.get(key)
        if load is not None and load.state != "ready":
            return load
        count = self._indexes.open(key).count()
        return Load("", "", state="ready", count=count, loaded=count)

    def ready(self, key: CorpusKey, *, patient: bool = False) -> PassageIndex:
        """The whole index of `key`; patient: it waits out a cluster that is away, instead of telling at once.

        Raises IndexUnavailable while it is (again) being built, NotFound if nobody ever asked for it, and what made
        its load fail for good.
        """
        load = self._loads.get(key)
        if load is None or load.state == "ready":
            index = self._opened(key, patient=patient)
            if index is not None:
                return index
        if load is None or load.state == "ready":
            load = self._begin(key, *self._noted(key))
        elif load.state == "failed" and load.error is not None:
            if not load.error["retryable"]:
                raise error_from_dict(load.error)
            load = self._begin(key, load.folder, load.language)
        raise IndexUnavailable(f"{key} is being loaded ({load.loaded} of {load.count or '?'} passages); wait for it")

    def drop(self, key: CorpusKey) -> None:
        """Forget `key` and its index; none is no error. Raises IndexUnavailable if its load does not stop."""
        with self._lock:
            load = self._loads.get(key)
        if load is not None:
            load.stop.set()
            if not load.over.wait(_STOP_SECONDS):
                raise IndexUnavailable(f"the load of {key} has not stopped yet; try again")
        with storage_errors(f"forgetting {key}"):
            if self._store.fs.exists(self._note_path(key)):
                self._store.fs.rm_file(self._note_path(key))
        self._indexes.drop(key)
        with self._lock:
            self._loads.pop(key, None)

    def close(self) -> None:
        """End the load under way; the next process goes on with it when asked."""
        self._pool.shutdown(cancel_futures=True)

    def _opened(self, key: CorpusKey, *, patient: bool = False) -> PassageIndex | None:
        """The index of `key` if it is whole and of this release; anything else is to be built anew."""
        try:
            return self._indexes.open(key, patient=patient)
        except (NotFound, IndexMismatch):
            return None

    def _begin(self, key: CorpusKey, folder: str, language: str) -> Load:
        with self._lock:
            load = self._loads.get(key)
            if load is not None and load.state == "loading":
                return load
            load = self._loads[key] = Load(folder, language)
            self._pool.submit(self._run, key, load)
            return load

    def _run(self, key: CorpusKey, load: Load) -> None:
        try:
            self._fill(key, load)
            load.state = "ready"
        except _Stopped:
            log.info("load of %s stopped", key)
        except TLMError as error:
            log.warning("load of %s failed: %s", key, error)
            load.error, load.state = error.as_dict(), "failed"
        except Exception as error:
            # Without this the load would seem to go on for ever.
            log.exception("load of %s failed", key)
            load.error, load.state = TLMError(f"loading failed: {error!r}; see the retriever's log").as_dict(), "failed"
        finally:
            load.over.set()

    def _fill(self, key: CorpusKey, load: Load) -> None:
        self._go_on(load)
        files = CorpusFiles(self._store, load.folder)
        load.count = files.count()
        index = self._indexes.begin(key, load.language)
        try:
            for batch in files.batches():
                self._go_on(load)
                index.add(batch)
                load.loaded += len(batch)
            index.commit(load.count)
        finally:
            index.close()
        log.info("%s loaded: %d passages", key, load.count)

    def _go_on(self, load: Load) -> None:
        if load.stop.is_set() or self._stop.is_set():
            raise _Stopped

    # --- where the passages lie -----------------------------------------------------------------------------------

    def _note_path(self, key: CorpusKey) -> str:
        tenant, name, version = (quote(part, safe="") for part in key)
        return self._store.path(tenant, "indexes", name, f"{version}.json")

    def _note(self, key: CorpusKey, folder: str, language: str) -> None:
        body = json.dumps({"folder": folder, "language": language}).encode()
        with storage_errors(f"noting {key}"):
            self._store.fs.makedirs(self._note_path(key).rsplit("/", 1)[0], exist_ok=True)
            self._store.fs.pipe_file(self._note_path(key), body)

    def _noted(self, key: CorpusKey) -> tuple[str, str]:
        try:
            with storage_errors(f"looking for {key}"):
                note = json.loads(self._store.fs.cat_file(self._note_path(key)))
        except NotFound as error:
            raise NotFound(f"{key} is not known here; load it first") from error
        return note["folder"], note["language"]
