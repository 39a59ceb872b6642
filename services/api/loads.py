"""Loads of corpora: an upload is cut into passages, kept in storage, and put into the index by the retriever.

Level-triggered: each round looks at every open load, takes the lease on one that nobody works on, and goes on from what
its record says. A gateway may be killed at any line; it, or another one, takes the load up again.
"""

from __future__ import annotations

import logging
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from services.common.catalog import Catalog
from services.common.catalog_records import OPEN, CorpusLoad, CorpusVersion
from services.common.logs import log_context
from services.common.retriever_client import CorpusLoad as Indexed
from services.common.retriever_client import RetrieverClient
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import IndexMismatch, NotFound, StaleAttempt, TLMError
from tlm_core.wire import CorpusState, LoadState

if TYPE_CHECKING:
    from tlm_core.corpus.passages import Passage

log = logging.getLogger(__name__)

_TOLD_EVERY = 5_000
_TO_CUT = frozenset({LoadState.QUEUED, LoadState.CUTTING})


class _Stopped(Exception):
    """The process is ending; the load stays open."""


class LoadWorker:
    """Works on open loads; cuts one after the other. owner: tells this process from all others."""

    def __init__(
        self,
        catalog: Catalog,
        artifacts: ArtifactStore,
        retriever: RetrieverClient,
        scratch: Path,
        *,
        owner: str | None = None,
        poll_seconds: float = 0.5,
        lease_seconds: int = 60,
    ) -> None:
        self._catalog = catalog
        self._artifacts = artifacts
        self._retriever = retriever
        self._scratch = scratch
        self._owner = owner or uuid.uuid4().hex
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        self._wake = threading.Event()
        self._stopping = False
        self._cutting = ""

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    def stop(self) -> None:
        """End `run` soon; a load under way is left as it is."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """Work until stopped. Cutting may take hours and has a thread of its own: no other load waits for it."""
        cutter = threading.Thread(target=self._rounds, args=(_TO_CUT,), name="cutting", daemon=True)
        cutter.start()
        self._rounds(OPEN - _TO_CUT)
        cutter.join()

    def _rounds(self, states: Set[LoadState]) -> None:
        away = False
        while not self._stopping:
            try:
                self.round(states)
                away = False
            except TLMError as error:
                if not away:
                    log.warning("loads of corpora wait: %s", error)
                away = True
            self._wake.wait(self._poll_seconds)
            self._wake.clear()

    def round(self, states: Set[LoadState] = OPEN) -> None:
        """Take the next step of every open load in one of `states` that nobody else works on."""
        for tenant, load_id in self._catalog.open_loads():
            if self._stopping:
                return
            # In this order: one that is being cut here is named before its record says so, until it is left.
            if self._catalog.load(tenant, load_id).state not in states or load_id == self._cutting:
                continue
            if self._catalog.lease_load(tenant, load_id, self._owner, self._lease_seconds):
                # Read again only now: whoever had the lease before may have brought the load to its end.
                load = self._catalog.load(tenant, load_id)
                if load.state in states:
                    with log_context(load_id=load_id):
                        self._step(load)

    def _step(self, load: CorpusLoad) -> None:
        try:
            if load.state is LoadState.CANCELLING:
                self._undo(load)
            elif load.state is LoadState.INDEXING:
                self._index(load)
            else:
                self._cutting = load.id
                try:
                    self._cut(load)
                finally:
                    self._cutting = ""
        except StaleAttempt as error:
            log.warning("%s", error)
        except _Stopped:
            log.info("left load %s of corpus %s for the next start", load.id, load.corpus)
        except TLMError as error:
            if error.retryable:
                log.warning("load %s of corpus %s waits: %s", load.id, load.corpus, error)
                return
            self._fail(load, error)
        except Exception:
            log.exception("load %s of corpus %s met an error nobody expected", load.id, load.corpus)
            self._fail(load, TLMError("the load met an error it did not expect; the gateway's log has the cause"))

    # --- from upload to passages in storage -------------------------------------------------------------------------

    def _cut(self, load: CorpusLoad) -> None:
        from tlm_core.corpus.near import NearDuplicates
        from tlm_core.corpus.read import read_sources, write_corpus

        load = load.model_copy(update={"state": LoadState.CUTTING, "done": 0})
        self._catalog.save_load(load, self._owner)
        folder = self._artifacts.localize(load.upload)
        names = [entry.name for entry in self._artifacts.manifest(load.upload).files]
        work = self._scratch / "work" / uuid.uuid4().hex
        state = work.with_suffix(".near")
        try:
            sources = [*(str(folder / name) for name in names), *load.sources]
            passages = read_sources(sources, say=lambda text: log.info("%s", text))
            near = None
            if load.near_duplicates == "drop":
                state.mkdir(parents=True)
                near = NearDuplicates(state)
            with self._kept_leased(load):
                info = write_corpus(self._told(passages, load), work, load.language, near)
                place = f"{load.tenant}/corpora/{load.corpus}/{info.version}"
                ref = self._artifacts.write(place, work, artifact=f"{load.corpus}@{info.version}", stage="corpus")
        finally:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(state, ignore_errors=True)
        version = CorpusVersion(
            version=info.version, language=load.language, passages=ref, count=info.count, state=CorpusState.LOADING,
            created_at=load.created_at, duplicates_dropped=info.duplicates_dropped,
            near_duplicates_dropped=info.near_duplicates_dropped,
            near_duplicates_seconds=round(near.seconds, 1) if near else None,
        )  # fmt: skip
        load = load.model_copy(
            update={"state": LoadState.INDEXING, "version": info.version, "done": 0, "total": info.count}
        )
        try:
            self._catalog.save_load(load, self._owner, self._kept(load, version))
        except StaleAttempt:
            self._drop_unclaimed(load, ref)
            raise
        self._index(load)

    def _drop_unclaimed(self, load: CorpusLoad, passages: ManifestRef) -> None:
        """Remove what was kept for a load that was cancelled meanwhile, unless a version is made of the same."""
        versions = self._catalog.corpus(load.tenant, load.corpus).versions
        cancelled = self._catalog.load(load.tenant, load.id).state in (LoadState.CANCELLING, LoadState.CANCELLED)
        if cancelled and passages.folder not in {version.passages.folder for version in versions}:
            self._artifacts.delete(passages.folder)

    def _kept(self, load: CorpusLoad, version: CorpusVersion) -> CorpusVersion:
        """The version as it is to be stored: one that can be searched stays so while it is asked for again."""
        try:
            before = self._catalog.corpus(load.tenant, load.corpus).version(version.version)
        except NotFound:
            return version
        return version.model_copy(update={"state": before.state}) if before.state is CorpusState.READY else version

    def _told(self, passages: Iterable[Passage], load: CorpusLoad) -> Iterator[Passage]:
        """The passages, while the record learns how many there were."""
        for number, passage in enumerate(passages, start=1):
            if number % _TOLD_EVERY == 0:
                self._catalog.save_load(load.model_copy(update={"done": number}), self._owner)
                if self._stopping:
                    raise _Stopped
            yield passage

    @contextmanager
    def _kept_leased(self, load: CorpusLoad) -> Iterator[None]:
        """Renew the lease beside the work: fetching a file, or reading all for its digest, may outlast it.

        A lease that was lost all the same shows when the record is next saved.
        """
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self._lease_seconds / 3):
                try:
                    self._catalog.lease_load(load.tenant, load.id, self._owner, self._lease_seconds)
                except TLMError as error:
                    log.warning("the lease on load %s could not be renewed: %s", load.id, error)

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # --- from storage to the index ----------------------------------------------------------------------------------

    def _index(self, load: CorpusLoad) -> None:
        """One look at the retriever, asking it for the load if it knows nothing of it (not asked, or restarted)."""
        assert load.version is not None, "a load is indexed after it has been cut"
        version = self._catalog.corpus(load.tenant, load.corpus).version(load.version)
        try:
            found = self._retriever.corpus(load.tenant, load.corpus, load.version)
        except IndexMismatch:
            # Left by another release: a load builds it anew, and says so itself if that cannot be.
            found = Indexed(state="unknown")
        match found.state:
            case "unknown":
                self._ask(load, version)
            case "loading":
                if found.loaded != load.done:
                    self._catalog.save_load(load.model_copy(update={"done": found.loaded}), self._owner)
            case "failed":
                error = found.failure or TLMError("the retriever could not load the corpus and does not say why")
                if not error.retryable:
                    self._fail(load, error)
                    return
                log.warning("load %s of corpus %s is asked for again: %s", load.id, load.corpus, error)
                self._ask(load, version)
            case "ready":
                over = load.model_copy(update={"state": LoadState.READY, "done": version.count})
                ready = version.model_copy(update={"state": CorpusState.READY, "refused": found.refused, "error": None})
                self._catalog.save_load(over, self._owner, ready)
                self._drop_upload(load)

    def _ask(self, load: CorpusLoad, version: CorpusVersion) -> None:
        folder, language = version.passages.folder, version.language
        self._retriever.put_corpus(load.tenant, load.corpus, version.version, folder=folder, language=language)

    def _fail(self, load: CorpusLoad, error: TLMError) -> None:
        failed = load.model_copy(update={"state": LoadState.FAILED, "error": error.as_dict()})
        version = None
        if load.version is not None:
            known = self._catalog.corpus(load.tenant, load.corpus).version(load.version)
            version = known.model_copy(update={"state": CorpusState.FAILED, "error": error.as_dict()})
        self._catalog.save_load(failed, self._owner, version)
        self._drop_upload(load)
        log.warning("load %s of corpus %s failed: %s", load.id, load.corpus, error)

    # --- the end of a load that was cancelled -----------------------------------------------------------------------

    def _undo(self, load: CorpusLoad) -> None:
        """Leave nothing of it: index, passages, upload. A version that could be searched before it stays as it is."""
        forget = ""
        if load.version is not None:
            version = self._catalog.corpus(load.tenant, load.corpus).version(load.version)
            if version.state is not CorpusState.READY:
                self._retriever.delete_corpus(load.tenant, load.corpus, load.version)
                self._artifacts.delete(version.passages.folder)
                forget = load.version
        self._drop_upload(load)
        over = load.model_copy(update={"state": LoadState.CANCELLED})
        self._catalog.save_load(over, self._owner, delete_version=forget)

    def _drop_upload(self, load: CorpusLoad) -> None:
        self._artifacts.delete(load.upload.folder)
