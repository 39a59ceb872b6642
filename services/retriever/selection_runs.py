"""Selections that run in the background. A repeated request starts no second run."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from services.common.background import Background
from services.common.logs import ids_in, log_context
from services.common.retriever_client import SelectionRequest, SelectionRun
from services.retriever.index_loads import IndexLoads
from services.retriever.indexes import CorpusKey
from services.retriever.registry import BEAT_SECONDS, Registry, Run
from tlm_core.artifacts import MANIFEST, Manifest, ManifestRef
from tlm_core.artifacts.store import ArtifactStore, drop_untouched
from tlm_core.errors import CorruptArtifact, InvalidRecipe, InvalidRequest, NotFound, TLMError
from tlm_core.selection.given import GIVEN
from tlm_core.selection.interface import Corpus
from tlm_core.selection.select import select
from tlm_core.selection.selectors import Selection
from tlm_core.tasks.task import Task

log = logging.getLogger(__name__)

_MAX_FINISHED = 1000
_SCRATCH_SECONDS = 7 * 24 * 3600


@dataclass(kw_only=True)
class SelectingRun(Run):
    """The computation of a selection. begun: whether a thread has started the computation.

    rate_start: (units done, seconds) at the first report of the unit. `report` measures the rate from this point.
    """

    status: SelectionRun = field(default_factory=lambda: SelectionRun(state="running"))
    begun: bool = False
    rate_start: tuple[int, float] = (0, 0.0)

    def report(self, done: int, total: int, unit: str, now: float) -> None:
        """Set progress and rate (units per second). The rate excludes units before the first report of `unit`."""
        if unit != self.status.unit or done < self.status.done or not self.status.total:
            self.rate_start = (done, now)
        first, since = self.rate_start
        rate = (done - first) / (now - since) if done > first and now > since else None
        self.update(done=done, total=total, unit=unit, rate=rate)


class _Stopped(Exception):
    """Signals that the run was stopped or replaced, or that the process ends."""


class SelectionRuns:
    """Runs up to `at_once` selections at a time. Holds the latest run of each artifact id in memory. Thread-safe.

    registry: shares the runs with other retrievers. After a restart, callers request their selections again.
    """

    def __init__(
        self,
        loads: IndexLoads,
        store: ArtifactStore,
        scratch: Path,
        stop: threading.Event,
        *,
        at_once: int,
        registry: Registry | None = None,
    ) -> None:
        self._loads = loads
        self._store = store
        self._scratch = scratch / "selections"
        self._stop = stop
        self._registry = registry or Registry()
        self._lock = threading.RLock()
        self._runs: dict[str, SelectingRun] = {}
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="selection")
        drop_untouched(self._scratch, _SCRATCH_SECONDS)
        self.task = Background("selections")
        self.task.start(self._beat, BEAT_SECONDS, stop)

    def put(self, artifact: str, request: SelectionRequest) -> None:
        """Start a selection. Ignore the request if a run with the same `prefix` runs, is ready, or failed permanently.

        A request with another `prefix` is from a later attempt, so the new run replaces the earlier run. Raises
        InvalidRecipe for invalid `request.params`.
        """
        params = _params(request)
        with self._lock:
            previous = self._runs.pop(artifact, None)
            if previous is not None and previous.prefix == request.prefix and _is_reusable(previous.status):
                self._runs[artifact] = previous
                return
            if previous is not None:
                previous.stop.set()
            run = SelectingRun(prefix=request.prefix)
            if not self._claim(artifact, run):
                return
            self._runs[artifact] = run
            finished = [name for name, known in self._runs.items() if not known.is_active]
            for name in finished[: max(0, len(self._runs) - _MAX_FINISHED)]:
                del self._runs[name]
        with log_context(**ids_in(request.prefix)):
            self._pool.submit(copy_context().run, self._run, artifact, request, params, run)

    def _claim(self, artifact: str, run: SelectingRun) -> bool:
        """Claim a selection for `run`. Returns False if another retriever has claimed it or has a reusable run."""
        entry = self._registry.read(artifact)
        if entry is not None and entry.prefix == run.prefix:
            status = SelectionRun.model_validate_json(entry.status)
            if entry.run not in {own.id for own in self._runs.values()} and _is_reusable(status):
                return False
        return self._registry.claim(artifact, run, instead_of=entry.run if entry is not None else "")

    def _beat(self) -> None:
        with self._lock:
            runs = list(self._runs.items())
        self._registry.save_active(runs)
        for artifact, run in runs:
            with self._lock:
                if run.stop.is_set() and not run.begun:  # Another retriever has stopped the run.
                    self._remove(artifact, run)

    def get(self, artifact: str) -> SelectionRun:
        """Return the status of the latest run. It is `unknown` without a run, or if the files are lost."""
        run = self._latest(artifact)
        if run is None:
            return SelectionRun(state="unknown")
        if run.status.ref is not None and not self._exists(run.status.ref):
            self._remove(artifact, run)
            return SelectionRun(state="unknown")
        return run.status

    def stop(self, artifact: str, prefix: str) -> bool:
        """Stop the selection of `artifact` if its output folder starts with `prefix`.

        Returns False while the selection still runs, because it stops after its current batch. Partial results remain
        for the next request of this artifact. Also deletes a failed run, so that the next request starts a new run.
        """
        with self._lock:
            run = self._latest(artifact)
            if run is not None and run.status.state == "failed":
                self._remove(artifact, run)
            if run is None or not run.is_active or not run.prefix.startswith(prefix):
                return True
            if self._runs.get(artifact) is not run:
                self._registry.stop(artifact)
                return False
            run.stop.set()
            if not run.begun:
                self._remove(artifact, run)
            return not run.begun

    def _latest(self, artifact: str) -> SelectingRun | None:
        """Return the latest run of a selection on any retriever, or None."""
        with self._lock:  # `put` holds the lock until it has replaced a run.
            run = self._runs.get(artifact)
        entry = self._registry.elsewhere(artifact, run)
        if entry is None:
            return run
        return SelectingRun(prefix=entry.prefix, status=SelectionRun.model_validate_json(entry.status), id=entry.run)

    def close(self) -> None:
        """Cancel waiting selections, and wait until running selections stop. The caller first sets the event `stop`."""
        self._pool.shutdown(cancel_futures=True)

    def _remove(self, artifact: str, run: SelectingRun) -> None:
        run.update(state="unknown")  # `_beat` no longer saves the run.
        with self._lock:
            if self._runs.get(artifact) is run:
                del self._runs[artifact]
        self._registry.forget(artifact, run.id)

    def _run(self, artifact: str, request: SelectionRequest, params: Selection, run: SelectingRun) -> None:
        with self._lock:
            run.begun = not run.stop.is_set()
        if not run.begun:
            return
        try:
            ref = self._finished_before(artifact, request.prefix) or self._select(artifact, request, params, run)
            self._finish(artifact, run, ref)
        except _Stopped:
            log.info("Selection %s in %s stopped", artifact, request.prefix)
            self._remove(artifact, run)
            return
        except TLMError as error:
            log.warning("Selection %s failed: %s", artifact, error)
            if not error.retryable:
                shutil.rmtree(self._scratch / artifact, ignore_errors=True)
            run.fail(error)
        except Exception as error:
            # Otherwise the selection would stay in the state `running`.
            log.exception("Selection %s failed", artifact)
            run.fail(TLMError(f"The selection failed: {error!r}. See the log of the retriever."))
        self._registry.save(artifact, run)

    def _finish(self, artifact: str, run: SelectingRun, ref: ManifestRef) -> None:
        """Mark the run as ready, with the files `ref`. If it was stopped, delete unused files and raise _Stopped."""
        with self._lock:
            if not run.stop.is_set():
                run.update(ref=ref, state="ready")
        if run.status.ref is None:
            entry = self._registry.read(artifact)
            if entry is None or entry.run == run.id or entry.prefix != run.prefix:
                self._store.delete(run.prefix)
            raise _Stopped

    def _select(self, artifact: str, request: SelectionRequest, params: Selection, run: SelectingRun) -> ManifestRef:
        def progress(done: int, total: int, unit: str) -> None:
            if run.stop.is_set() or self._stop.is_set():
                raise _Stopped
            run.report(done, total, unit, time.monotonic())

        task = self._store.localize(request.task)
        source = self._source(request, params, task)
        # The artifact id identifies the content, so partial results of any earlier attempt or process are valid.
        scratch = self._scratch / artifact
        scratch.mkdir(parents=True, exist_ok=True)
        os.utime(scratch)  # It belongs to a running selection from now on.
        drop_untouched(self._scratch, _SCRATCH_SECONDS)
        folder = self._scratch / f"{artifact}-{uuid.uuid4().hex}"
        try:
            facts = select(
                Task.read(task), source, params, folder, seed=request.seed, scratch=scratch, progress=progress
            )
            meta = {key: value for key, value in facts.items() if key in ("passages", "corpus")}
            progress(run.status.done, run.status.total, run.status.unit)
            ref = self._store.write(request.prefix, folder, artifact=artifact, stage="select", meta=meta)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
        return ref

    def _source(self, request: SelectionRequest, params: Selection, task: Path) -> Corpus | Path | None:
        """Return what the selector reads: a corpus, the path of the uploaded selection, or None."""
        match params.definition.source:
            case "nothing":
                return None
            case "dataset":
                if not (task / GIVEN).is_file():
                    raise InvalidRequest(
                        "The dataset has no selection file. Upload the dataset again with a file in the form field "
                        "'selection', or use another selector."
                    )
                return task / GIVEN
        if request.corpus is None or request.version is None:
            raise InvalidRequest(f"Selector '{params.selector}' needs a corpus. Send 'corpus' and 'version'.")
        key = CorpusKey(request.tenant, request.corpus, request.version)
        return Corpus(key.name, key.version, self._loads.ready(key, wait=True))

    def _finished_before(self, artifact: str, prefix: str) -> ManifestRef | None:
        """Return the selection that an earlier process completed in the folder `prefix`, or None."""
        path = self._store.path(prefix, MANIFEST)
        with self._store.errors(f"reading {prefix}"):
            body = self._store.fs.cat_file(path) if self._store.fs.exists(path) else b""
        try:
            manifest = Manifest.model_validate_json(body)
        except ValidationError:
            return None
        ref = ManifestRef(folder=prefix, digest=manifest.digest)
        return ref if manifest.artifact == artifact and self._exists(ref) else None

    def _exists(self, ref: ManifestRef) -> bool:
        """Return whether the files of a selection are complete. The coordinator also uses `ArtifactStore.check`."""
        try:
            self._store.check(ref)
        except (NotFound, CorruptArtifact) as error:
            with log_context(**ids_in(ref.folder)):
                log.warning("The selection in %s is lost and is computed again: %s", ref.folder, error)
            return False
        return True


def _is_reusable(status: SelectionRun) -> bool:
    """Return whether a repeated request uses a run with this status: active, ready, or failed permanently."""
    return status.failure is None or not status.failure.retryable


def _params(request: SelectionRequest) -> Selection:
    try:
        return Selection.model_validate(request.params)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidRecipe(f"Invalid selection options: {problems}") from error
