"""Loads of corpora: split an upload into passages, store them, and let the retriever index them.

In each round, the loader acquires the lease of every open load that no other process works on. It continues the load
from its record, so a loader may stop at any moment. Each source file is split once: the loader stores the passages, and
records their folder.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING

from services.common.background import Background
from services.common.catalog import Catalog
from services.common.catalog_records import OPEN, CorpusLoad, CorpusVersion
from services.common.logs import log_context
from services.common.retriever_client import IndexLoad, RetrieverClient
from tlm_core.artifacts import ManifestRef, temporary_folder
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.corpus.states import CorpusState, LoadState
from tlm_core.errors import IndexMismatch, NotFound, Outage, StaleAttempt, TLMError
from tlm_core.pulse import PULSE

if TYPE_CHECKING:
    from tlm_core.corpus.passages import Passage
    from tlm_core.corpus.read import CorpusInfo

log = logging.getLogger(__name__)

NEAR = "near"  # folder in the scratch folder, with the state of the search for near duplicates
_REPORT_EVERY = 5_000
_LEASE_SECONDS = 60
_FETCH_DELAYS = 5.0, 60.0  # the shortest and longest seconds between two tries to fetch the sources of a load
_SPLITTING = frozenset({LoadState.QUEUED, LoadState.CUTTING})


class _Stopped(Exception):
    """Signals that the process is shutting down. The load stays open."""


class LoadWorker:
    """Works on open (unfinished) loads, and splits one upload at a time. owner: unique id of this process."""

    def __init__(
        self,
        catalog: Catalog,
        artifacts: ArtifactStore,
        retriever: RetrieverClient,
        scratch: Path,
        *,
        owner: str | None = None,
        poll_seconds: float = 0.5,
    ) -> None:
        self._catalog = catalog
        self._artifacts = artifacts
        self._retriever = retriever
        self._scratch = scratch
        self._owner = owner or uuid.uuid4().hex
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._splitting = ""
        self._delays: dict[str, tuple[float, float]] = {}  # load → delay of its next try, and the end of the delay
        self.tasks = (Background("splitting of uploads"), Background("loads"))

    def stop(self) -> None:
        """Stop `run` soon. An active load stays open, so that the next start or another loader continues it."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop` is called. A separate thread splits uploads, because splitting may take hours."""
        splitting, others = self.tasks
        splitter = splitting.start(lambda: self.round(_SPLITTING, splitting), self._poll_seconds, self._stop)
        others.repeat(lambda: self.round(OPEN - _SPLITTING, others), self._poll_seconds, self._stop)
        splitter.join()

    def round(self, states: Set[LoadState] = OPEN, task: Background | None = None) -> None:
        """Do the next step of each open load in `states` that no other process works on. `task` logs errors."""
        if _SPLITTING & states:  # The other steps cannot hang, because they are calls with time limits.
            PULSE.advance()
        for tenant, load_id in self._catalog.open_loads():
            if self._stop.is_set():
                return
            with (task or self.tasks[0]).item(f"load {load_id}", load_id=load_id):
                self._work_on(tenant, load_id, states)

    def _work_on(self, tenant: str, load_id: str, states: Set[LoadState]) -> None:
        # Read the state before `_splitting`, which the other thread sets before it changes the state.
        state = self._catalog.load(tenant, load_id).state
        if state not in states or load_id == self._splitting:
            return
        if state in _SPLITTING and time.monotonic() < self._delays.get(load_id, (0.0, 0.0))[1]:
            return
        if self._catalog.lease_load(tenant, load_id, self._owner, _LEASE_SECONDS):
            # Read again: the previous owner of the lease may have finished the load.
            load = self._catalog.load(tenant, load_id)
            if load.state in states:
                with log_context(request_id=load.request_id):
                    self._step(load)

    def _step(self, record: CorpusLoad) -> None:
        load = _advanced(record)
        try:
            if load.state is LoadState.CANCELLING:
                self._undo(load)
            elif load.state is LoadState.INDEXING:
                self._index(load)
            else:
                self._splitting = load.id
                try:
                    self._split(record)
                finally:
                    self._splitting = ""
        except StaleAttempt as error:
            log.warning("%s", error)
        except _Stopped:
            log.info("Load %s of corpus %s will continue at the next start", load.id, load.corpus)
        except TLMError as error:
            if _can_wait(error):
                self._wait(record, error)
                return
            self._fail(load, error)
        except Exception:
            log.exception("Load %s of corpus %s failed unexpectedly", load.id, load.corpus)
            self._fail(load, TLMError("The load failed unexpectedly. The log of the loader has the cause."))

    def _wait(self, load: CorpusLoad, error: TLMError) -> None:
        """Log and record why a load waits, if the reason is new. A later round tries again.

        A load that fetches files waits 5 to 60 s, because each try sends requests to the hub or an external store.
        """
        load = self._catalog.load(load.tenant, load.id)  # the failed step may have saved progress
        if load.sources and load.state in _SPLITTING:
            shortest, longest = _FETCH_DELAYS
            delay = min(longest, 2 * self._delays.get(load.id, (shortest / 2, 0.0))[0])
            self._delays[load.id] = delay, time.monotonic() + delay
        if load.waiting != error.message:
            log.warning("Load %s of corpus %s waits: %s", load.id, load.corpus, error)
            with suppress(StaleAttempt):  # another process has the load now, and records its own reason
                self._catalog.save_load(load.model_copy(update={"waiting": error.message}), self._owner)

    # --- from the upload to stored passages -------------------------------------------------------------------------

    def _split(self, load: CorpusLoad) -> None:
        self._artifacts.check_space()
        with self._renewed_lease(load):
            load = self._cut(load)
            info, ref, near_seconds = self._write_passages(load)
        version = CorpusVersion(
            version=info.version, language=load.language, passages=ref, count=info.count, state=CorpusState.LOADING,
            created_at=load.created_at, duplicates_dropped=info.duplicates_dropped,
            near_duplicates_dropped=info.near_duplicates_dropped, near_duplicates_seconds=near_seconds,
        )  # fmt: skip
        load = load.model_copy(
            update={"state": LoadState.INDEXING, "version": info.version, "done": 0, "total": info.count}
        )
        try:
            self._catalog.save_load(load, self._owner, self._merged(load, version))
        except StaleAttempt:
            self._delete_unrecorded(load, ref)
            raise
        shutil.rmtree(self._near_state(load), ignore_errors=True)
        self._index(load)

    def _cut(self, load: CorpusLoad) -> CorpusLoad:
        """Split each remaining source file, and store its passages. Return the new record, with `cut` complete."""
        from tlm_core.corpus.read import source_files

        load = load.model_copy(update={"state": LoadState.CUTTING, "done": sum(map(self._count, load.cut))})
        self._catalog.save_load(load, self._owner)  # No progress yet, so the record still says why the load waits.
        load = _advanced(load)
        folder, work = self._artifacts.localize(load.upload), self._scratch / "work"
        names = [entry.name for entry in self._artifacts.manifest(load.upload).files]
        sources = [*(str(folder / name) for name in names), *load.sources]
        files = source_files(sources, skip=len(load.cut), notify=lambda text: log.info("%s", text), scratch=work)
        passages = next(files, None)
        while passages is not None:
            ref = self._store(load, passages)
            passages = next(files, None)  # A file with errors raises here, before the record names it.
            load = load.model_copy(update={"cut": (*load.cut, ref), "done": load.done + self._count(ref)})
            self._catalog.save_load(load, self._owner)
            self._delays.pop(load.id, None)
        return load

    def _store(self, load: CorpusLoad, passages: Iterable[Passage]) -> ManifestRef:
        """Store the passages of one source file in the folder of the upload, and return their reference."""
        from pyarrow.parquet import read_metadata

        from tlm_core.corpus.read import write_parts

        with temporary_folder(self._scratch / "work", "splitting the corpus") as work:
            parts = write_parts(self._watched(passages, load, counted=True), work)
            meta = {"count": sum(read_metadata(part).num_rows for part in parts)}
            # A loader that lost its lease may still write. With its id in the name, it overwrites no recorded file.
            place = f"{load.upload.folder}/cut/{len(load.cut):05d}-{self._owner}"
            return self._artifacts.write(place, work, artifact=load.id, stage="cut", meta=meta)

    def _count(self, cut: ManifestRef) -> int:
        return int(self._artifacts.manifest(cut).meta["count"])

    def _write_passages(self, load: CorpusLoad) -> tuple[CorpusInfo, ManifestRef, float | None]:
        """Write the corpus to the storage. Return (info, reference of the files, seconds).

        seconds: the time of the search for near duplicates, or None if the load does not search for them.
        """
        from tlm_core.corpus.near import NearDuplicates
        from tlm_core.corpus.read import read_parts, write_corpus

        with temporary_folder(self._scratch / "work", "splitting the corpus") as work:
            near = NearDuplicates(self._near_state(load)) if load.near_duplicates == "drop" else None
            passages = (passage for ref in load.cut for passage in read_parts(self._artifacts.localize(ref)))
            info = write_corpus(self._watched(passages, load), work, load.language, near)
            place = f"{load.tenant}/corpora/{load.corpus}/{info.version}"
            ref = self._artifacts.write(place, work, artifact=f"{load.corpus}@{info.version}", stage="corpus")
        return info, ref, round(near.seconds, 1) if near else None

    def _near_state(self, load: CorpusLoad) -> Path:
        """Return the folder with the state of the search for near duplicates. A restarted search reads this state."""
        return self._scratch / NEAR / load.id

    def _delete_unrecorded(self, load: CorpusLoad, passages: ManifestRef) -> None:
        """Delete the passages of a cancelled load, if no recorded version uses the folder of the passages."""
        versions = self._catalog.corpus(load.tenant, load.corpus).versions
        cancelled = self._catalog.load(load.tenant, load.id).state in (LoadState.CANCELLING, LoadState.CANCELLED)
        if cancelled and passages.folder not in {version.passages.folder for version in versions}:
            self._artifacts.delete(passages.folder)

    def _merged(self, load: CorpusLoad, version: CorpusVersion) -> CorpusVersion:
        """Return `version`, with the state READY if an earlier load has already made this version searchable."""
        try:
            before = self._catalog.corpus(load.tenant, load.corpus).version(version.version)
        except NotFound:
            return version
        return version.model_copy(update={"state": before.state}) if before.state is CorpusState.READY else version

    def _watched(self, passages: Iterable[Passage], load: CorpusLoad, *, counted: bool = False) -> Iterator[Passage]:
        """Yield the passages, and save the record of the load regularly. counted: add the passages to `done`.

        Raises _Stopped on shutdown, and StaleAttempt if the load is cancelled or the lease is lost.
        """
        for number, passage in enumerate(passages, start=1):
            PULSE.advance()
            if number % _REPORT_EVERY == 0:
                done = load.done + number if counted else load.done
                self._catalog.save_load(load.model_copy(update={"done": done}), self._owner)
                if self._stop.is_set():
                    raise _Stopped
            yield passage

    @contextmanager
    def _renewed_lease(self, load: CorpusLoad) -> Iterator[None]:
        """Renew the lease in a thread, because the download of a large file may take longer than the lease.

        If the lease is lost anyway, the next save of the record raises StaleAttempt.
        """
        finished = threading.Event()

        def renew() -> None:
            while not finished.wait(_LEASE_SECONDS / 3):
                try:
                    self._catalog.lease_load(load.tenant, load.id, self._owner, _LEASE_SECONDS)
                except TLMError as error:
                    log.warning("The lease on load %s could not be renewed: %s", load.id, error)

        thread = threading.Thread(target=copy_context().run, args=(renew,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()

    # --- from storage to the index ----------------------------------------------------------------------------------

    def _index(self, load: CorpusLoad) -> None:
        """Update the record of `load` from the retriever's progress. If the retriever has no such load, request it."""
        assert load.version is not None, "a load is indexed after its upload was split"
        version = self._catalog.corpus(load.tenant, load.corpus).version(load.version)
        try:
            status = self._retriever.corpus(load.tenant, load.corpus, load.version)
        except IndexMismatch:
            # Another release wrote the index. A new load replaces it, or fails with the reason.
            status = IndexLoad(state="unknown")
        match status.state:
            case "unknown":
                self._request(load, version)
            case "loading":
                if status.loaded != load.done:
                    self._catalog.save_load(load.model_copy(update={"done": status.loaded}), self._owner)
            case "failed":
                error = status.failure or TLMError("The retriever failed to load the corpus. Read the retriever's log.")
                if not _can_wait(error):
                    self._fail(load, error)
                    return
                self._wait(load, error)
                self._request(load, version)
            case "ready":
                ready_load = load.model_copy(update={"state": LoadState.READY, "done": version.count})
                changes = {"state": CorpusState.READY, "refused": status.refused, "error": None}
                self._catalog.save_load(ready_load, self._owner, version.model_copy(update=changes))
                self._delete_upload(load)

    def _request(self, load: CorpusLoad, version: CorpusVersion) -> None:
        folder, language = version.passages.folder, version.language
        self._retriever.put_corpus(load.tenant, load.corpus, version.version, folder=folder, language=language)

    def _fail(self, load: CorpusLoad, error: TLMError) -> None:
        failed = load.model_copy(update={"state": LoadState.FAILED, "error": error.as_dict()})
        version = None
        if load.version is not None:
            known = self._catalog.corpus(load.tenant, load.corpus).version(load.version)
            version = known.model_copy(update={"state": CorpusState.FAILED, "error": error.as_dict()})
        self._catalog.save_load(failed, self._owner, version)
        self._delete_upload(load)
        log.warning("Load %s of corpus %s failed: %s", load.id, load.corpus, error)

    def _undo(self, load: CorpusLoad) -> None:
        """Delete index, passages and upload of a cancelled load. A version that was searchable before remains."""
        forget = ""
        if load.version is not None:
            version = self._catalog.corpus(load.tenant, load.corpus).version(load.version)
            if version.state is not CorpusState.READY:
                self._retriever.delete_corpus(load.tenant, load.corpus, load.version)
                self._artifacts.delete(version.passages.folder)
                forget = load.version
        self._delete_upload(load)
        cancelled = load.model_copy(update={"state": LoadState.CANCELLED})
        self._catalog.save_load(cancelled, self._owner, delete_version=forget)

    def _delete_upload(self, load: CorpusLoad) -> None:
        self._delays.pop(load.id, None)
        shutil.rmtree(self._near_state(load), ignore_errors=True)
        self._artifacts.delete(load.upload.folder)


def _advanced(load: CorpusLoad) -> CorpusLoad:
    """Return a copy of the record with an empty field `waiting`, for a load that makes progress."""
    return load.model_copy(update={"waiting": ""})


def _can_wait(error: TLMError) -> bool:
    """Return whether the load may succeed later, for example when a full disk has space again."""
    return error.retryable or isinstance(error, Outage)
