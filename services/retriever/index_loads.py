"""Loads of corpus versions into their indexes. A repeated request starts no second load."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, field

from services.common.background import Background
from services.common.retriever_client import IndexLoad
from services.retriever.bulk import Refused
from services.retriever.corpus_storage import CorpusFiles, LoadRecords
from services.retriever.indexes import CorpusIndexes, CorpusKey
from services.retriever.registry import BEAT_SECONDS, Registry, Run
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import Conflict, IndexMismatch, IndexUnavailable, NotFound, TLMError
from tlm_core.selection.index import PassageIndex

log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0
_SAVE_SECONDS = 5.0


@dataclass(kw_only=True)
class _Load(Run):
    """A requested load. `status.count` is 0 until the passages are counted."""

    folder: str
    language: str
    status: IndexLoad = field(default_factory=lambda: IndexLoad(state="loading"))
    future: Future[None] = field(default_factory=Future)


class _Stopped(Exception):
    """Signals that the load was dropped or that the process ends."""


class IndexLoads:
    """Loads corpus versions from the storage into their indexes, one at a time. Thread-safe.

    The storage has a record of the passages of each version, so `ready` can build a lost index again.
    """

    def __init__(
        self,
        indexes: CorpusIndexes,
        store: ArtifactStore,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        registry: Registry | None = None,
    ) -> None:
        self._registry = registry or Registry()
        self._indexes = indexes
        self._store = store
        self._records = LoadRecords(store)
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        self._loads: dict[CorpusKey, _Load] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="load")
        self.task = Background("index loads")
        self.task.start(self._beat, BEAT_SECONDS, stop)

    def put(self, key: CorpusKey, folder: str, language: str) -> None:
        """Start the load of a corpus version, also after a failed load. Ignore a version that is loaded or loading."""
        load = self._loads.get(key)
        elsewhere = self._elsewhere(key)
        if "loading" in (load and load.status.state, elsewhere and elsewhere.state):
            return
        if self._complete_index(key) is None:
            self._records.save_source(key, folder, language)
            self._begin(key, folder, language)
        elif load is not None:
            # The index of the failed load is complete: only the response to the last step was lost.
            load.update(state="ready", error=None)

    def get(self, key: CorpusKey) -> IndexLoad:
        """Return the progress of a load. Raises NotFound for an unknown version, IndexMismatch or IndexUnavailable."""
        load = self._loads.get(key)
        if elsewhere := self._elsewhere(key):
            return elsewhere
        if load is not None and load.status.state != "ready":
            return load.status
        index = self._indexes.open(key)
        refused = len(self.refused(key))
        count = index.count() + refused
        return IndexLoad(state="ready", count=count, loaded=count, refused=refused)

    def refused(self, key: CorpusKey) -> tuple[Refused, ...]:
        """Return the passages of `key` that its index refuses, with the reasons."""
        return self._records.progress(key).refused

    def ready(self, key: CorpusKey, *, wait: bool = False) -> PassageIndex:
        """Return the complete index of `key`. If the index is lost or its load failed temporarily, start a new load.

        wait: whether to retry while the cluster is unavailable. Raises IndexUnavailable during any load, and while the
        cluster is unavailable. Raises the error of a load that failed permanently, and NotFound if the version was
        never loaded. Raises IndexMismatch for an index of another release, if `LoadRecords` has no source for it.
        """
        load = self._loads.get(key)
        status = self._elsewhere(key) or (load.status if load else None)
        if status is not None and (failure := status.failure):
            if not failure.retryable:
                raise failure
            self.put(key, *self._records.source(key))
            load = self._loads.get(key)
            status = load.status if load else None
        if status is None or status.state == "ready":
            try:
                return self._indexes.open(key, wait=wait)
            except (NotFound, IndexMismatch) as error:
                status = self._begin(key, *self._source(key, error)).status
        loaded, count = status.loaded, status.count or "?"
        raise IndexUnavailable(f"The index of {key} is being loaded ({loaded} of {count} passages). Try again later.")

    def drop(self, key: CorpusKey) -> None:
        """Stop the load of `key`, then delete index and records. Raises IndexUnavailable while the load still runs."""
        with self._lock:  # `_begin` holds the lock until the load has its future.
            load = self._loads.get(key)
        if (elsewhere := self._elsewhere(key)) and elsewhere.state == "loading":
            self._registry.stop(key.slug)
            raise IndexUnavailable(f"The load of {key} has not stopped yet. Try again.")
        if load is not None:
            load.stop.set()
            if load.future.cancel():  # This load still waited for another load.
                load.fail(_stopped(key))
            elif wait([load.future], _STOP_SECONDS).not_done:
                raise IndexUnavailable(f"The load of {key} has not stopped yet. Try again.")
        self._records.delete(key)
        self._indexes.drop(key)
        if entry := self._registry.read(key.slug):
            self._registry.forget(key.slug, entry.run)
        self._loads.pop(key, None)

    def close(self) -> None:
        """Cancel waiting loads, and wait until the running load stops. The caller first sets the event `stop`."""
        self._pool.shutdown(cancel_futures=True)

    def _complete_index(self, key: CorpusKey) -> PassageIndex | None:
        try:
            return self._indexes.open(key)
        except (NotFound, IndexMismatch):
            return None

    def _source(self, key: CorpusKey, error: TLMError) -> tuple[str, str]:
        """Return the recorded (folder, language). Without a record, raise `error` if IndexMismatch, else NotFound."""
        try:
            return self._records.source(key)
        except NotFound:
            if isinstance(error, IndexMismatch):
                raise error from None
            raise

    def _begin(self, key: CorpusKey, folder: str, language: str) -> _Load:
        with self._lock:
            load = self._loads.get(key)
            if load is not None and load.status.state == "loading":
                return load
            load = _Load(folder=folder, language=language)
            entry = self._registry.read(key.slug)
            failed = entry.run if entry and IndexLoad.model_validate_json(entry.status).state == "failed" else ""
            if not self._registry.claim(key.slug, load, instead_of=failed):  # Another retriever has claimed the load.
                return load
            self._loads[key] = load
            load.future = self._pool.submit(copy_context().run, self._run, key, load)  # with the ids for logs
            return load

    def _elsewhere(self, key: CorpusKey) -> IndexLoad | None:
        """Return the progress of the load of `key` if another retriever has claimed the load, else None."""
        entry = self._registry.elsewhere(key.slug, self._loads.get(key))
        return IndexLoad.model_validate_json(entry.status) if entry else None

    def _beat(self) -> None:
        self._registry.save_active([(key.slug, load) for key, load in list(self._loads.items())])

    def _run(self, key: CorpusKey, load: _Load) -> None:
        try:
            self._fill(key, load)
            load.update(state="ready")
        except _Stopped:
            # The load must leave the state `loading`, because the deletion of the index may fail afterwards.
            log.info("Load of %s stopped", key)
            load.fail(_stopped(key))
        except (NotFound, Conflict) as error:
            # Another retriever may have completed the same load, and closed the index for writing.
            if self._complete_index(key) is not None:
                load.update(state="ready", loaded=load.status.count)
            else:
                load.fail(error)
        except TLMError as error:
            log.warning("Load of %s failed: %s", key, error)
            load.fail(error)
        except Exception as error:
            # Otherwise the load would stay in the state `loading`.
            log.exception("Load of %s failed", key)
            load.fail(TLMError(f"The load failed: {error!r}. See the log of the retriever."))
        if load.status.state == "failed":
            self._registry.save(key.slug, load)
        else:  # The index and the records hold the result.
            self._registry.forget(key.slug, load.id)

    def _fill(self, key: CorpusKey, load: _Load) -> None:
        self._check_stop(load)
        files = CorpusFiles(self._store, load.folder)
        count = files.count()
        load.update(count=count)
        index = self._indexes.begin(key, load.language)
        try:
            cursor = self._records.progress(key, index.identity)
            if cursor.position:
                log.info("Load of %s resumes at passage %d", key, cursor.position)
                index.resume(cursor)
            load.update(loaded=cursor.position)
            saved = self._clock()
            for batch in files.batches(cursor.position):
                self._check_stop(load)
                index.add(batch)
                load.update(loaded=index.cursor.position, refused=len(index.cursor.refused))
                if self._clock() - saved >= _SAVE_SECONDS:
                    self._records.save_progress(key, index)
                    saved = self._clock()
            index.flush()
            self._records.save_progress(key, index)
            index.commit(count)
            refused = len(index.cursor.refused)
            load.update(loaded=count, refused=refused)
        finally:
            index.close()
        log.log(logging.WARNING if refused else logging.INFO, "%s: %d passages, %d refused", key, count, refused)

    def _check_stop(self, load: _Load) -> None:
        if load.stop.is_set() or self._stop.is_set():
            raise _Stopped


def _stopped(key: CorpusKey) -> TLMError:
    return IndexUnavailable(f"The load of {key}, was stopped. Request it again.")
