"""Loads of corpus versions into their indexes: asked for again and again, done once, resumed after any death."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal

from services.retriever.bulk import Refused
from services.retriever.indexes import CorpusIndexes, CorpusKey
from services.retriever.passages_in import CorpusFiles
from services.retriever.records import LoadRecords
from tlm_core.artifacts import ArtifactStore
from tlm_core.errors import Conflict, IndexMismatch, IndexUnavailable, NotFound, TLMError, error_from_dict
from tlm_core.selection.index import PassageIndex

log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0
_KEPT_EVERY = 5.0


@dataclass
class Load:
    """How far one load is: `loaded` of `count` passages. count is 0 until the files were looked at.

    refused: how many of those loaded the index will never take; which and why stands in storage (see `records`).
    """

    folder: str
    language: str
    state: Literal["loading", "ready", "failed"] = "loading"
    count: int = 0
    loaded: int = 0
    refused: int = 0
    error: dict[str, Any] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    future: Future[None] = field(default_factory=Future)

    def fail(self, error: TLMError) -> None:
        self.error, self.state = error.as_dict(), "failed"


class _Stopped(Exception):
    """The load was dropped, or the process ends. Control flow."""


class CorpusLoads:
    """Keeps indexes equal to what lies in storage. One load runs at a time; thread-safe.

    Where a version's passages lie is noted in the storage as well, so an index that was lost is built again without
    anyone's asking.
    """

    def __init__(
        self,
        indexes: CorpusIndexes,
        store: ArtifactStore,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._indexes = indexes
        self._store = store
        self._records = LoadRecords(store)
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        self._loads: dict[CorpusKey, Load] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="load")

    def put(self, key: CorpusKey, folder: str, language: str) -> None:
        """Load `key` from `folder` unless it is loaded or loading. A load that failed is begun again."""
        load = self._loads.get(key)
        if load is not None and load.state == "loading":
            return
        if self._opened(key) is None:
            self._records.note(key, folder, language)
            self._begin(key, folder, language)
        elif load is not None:
            # One that failed may be whole all the same: it was the answer to its last step that was lost.
            load.state = "ready"

    def get(self, key: CorpusKey) -> Load:
        """How far `key` is. Raises NotFound if it is neither loaded nor was asked for here."""
        load = self._loads.get(key)
        if load is not None and load.state != "ready":
            return load
        index = self._indexes.open(key)
        refused = self._records.refused(key)
        count = index.count() + refused
        return Load("", "", state="ready", count=count, loaded=count, refused=refused)

    def refused(self, key: CorpusKey) -> list[Refused]:
        """The passages of `key` that its index will never take, with the reasons."""
        return self._records.letters(key)

    def ready(self, key: CorpusKey, *, patient: bool = False) -> PassageIndex:
        """The whole index of `key`; patient: it waits out a cluster that is away, instead of telling at once.

        Raises IndexUnavailable while it is (again) being built, NotFound if nobody ever asked for it, and what made
        its load fail for good.
        """
        load = self._loads.get(key)
        if load is not None and load.state == "failed" and load.error is not None:
            if not load.error["retryable"]:
                raise error_from_dict(load.error)
            self.put(key, load.folder, load.language)
            load = self._loads.get(key)
        if load is None or load.state == "ready":
            try:
                return self._indexes.open(key, patient=patient)
            except (NotFound, IndexMismatch) as fault:
                load = self._begin(key, *self._noted(key, fault))
        raise IndexUnavailable(f"{key} is being loaded ({load.loaded} of {load.count or '?'} passages); wait for it")

    def drop(self, key: CorpusKey) -> None:
        """Forget `key` and its index; none is no error. Raises IndexUnavailable if its load does not stop."""
        with self._lock:
            load = self._loads.get(key)
        if load is not None:
            load.stop.set()
            if load.future.cancel():  # another load is still in its way
                load.fail(_stopped(key))
            elif wait([load.future], _STOP_SECONDS).not_done:
                raise IndexUnavailable(f"the load of {key} has not stopped yet; try again")
        self._records.forget(key)
        self._indexes.drop(key)
        with self._lock:
            self._loads.pop(key, None)

    def close(self) -> None:
        """End the load under way; the next process goes on with it when asked."""
        self._pool.shutdown(cancel_futures=True)

    def _opened(self, key: CorpusKey) -> PassageIndex | None:
        """The index of `key` if it is whole and of this release; anything else is to be built anew."""
        try:
            return self._indexes.open(key)
        except (NotFound, IndexMismatch):
            return None

    def _noted(self, key: CorpusKey, fault: TLMError) -> tuple[str, str]:
        """Where the passages of `key` lie. fault: why its index cannot be used, which is what to tell if it is more
        than that nobody asked for it."""
        try:
            return self._records.noted(key)
        except NotFound:
            if isinstance(fault, IndexMismatch):
                raise fault from None
            raise

    def _begin(self, key: CorpusKey, folder: str, language: str) -> Load:
        with self._lock:
            load = self._loads.get(key)
            if load is not None and load.state == "loading":
                return load
            load = self._loads[key] = Load(folder, language)
            load.future = self._pool.submit(self._run, key, load)
            return load

    def _run(self, key: CorpusKey, load: Load) -> None:
        try:
            self._fill(key, load)
            load.state = "ready"
        except _Stopped:
            # Whoever stopped it may not come to an end with the index, and then it must not seem to go on.
            log.info("load of %s stopped", key)
            load.fail(_stopped(key))
        except (NotFound, Conflict) as error:
            # Another retriever may have brought the very same load to its end, and closed the index for writing.
            if self._opened(key) is not None:
                load.loaded, load.state = load.count, "ready"
            else:
                load.fail(error)
        except TLMError as error:
            log.warning("load of %s failed: %s", key, error)
            load.fail(error)
        except Exception as error:
            # Without this the load would seem to go on for ever.
            log.exception("load of %s failed", key)
            load.fail(TLMError(f"loading failed: {error!r}; see the retriever's log"))

    def _fill(self, key: CorpusKey, load: Load) -> None:
        self._go_on(load)
        files = CorpusFiles(self._store, load.folder)
        load.count = files.count()
        index = self._indexes.begin(key, load.language)
        try:
            at = self._records.taken(key, index.identity)
            if at.taken:
                log.info("%s goes on behind passage %d", key, at.taken)
                index.go_on(at)
            load.loaded = at.taken
            kept = self._clock()
            for batch in files.batches(at.taken):
                self._go_on(load)
                index.add(batch)
                load.loaded, load.refused = index.taken, len(index.refused)
                if self._clock() - kept >= _KEPT_EVERY:
                    self._records.keep(key, index)
                    kept = self._clock()
            index.flush()
            self._records.keep(key, index)
            index.commit(load.count)
            load.loaded, load.refused = load.count, len(index.refused)
        finally:
            index.close()
        if load.refused:
            log.warning("%s: %d passages refused, see %s", key, load.refused, self._records.refused_path(key))
        log.info("%s loaded: %d passages", key, load.count - load.refused)

    def _go_on(self, load: Load) -> None:
        if load.stop.is_set() or self._stop.is_set():
            raise _Stopped


def _stopped(key: CorpusKey) -> TLMError:
    return IndexUnavailable(f"the load of {key} was stopped; ask for it again")
