"""Selections that run in the background: asked for again and again, done once."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from services.common.retriever_client import SelectionRequest
from services.retriever.indexes import CorpusKey
from services.retriever.loads import CorpusLoads
from tlm_core.artifacts import MANIFEST, ArtifactStore, Manifest, ManifestRef, drop_untouched
from tlm_core.errors import CorruptArtifact, InvalidRecipe, InvalidRequest, NotFound, TLMError
from tlm_core.selection.given import GIVEN
from tlm_core.selection.interface import Corpus
from tlm_core.selection.select import select
from tlm_core.selection.selectors import Selection
from tlm_core.tasks.task import Task

log = logging.getLogger(__name__)

_REMEMBERED = 1000
_FORGOTTEN_SECONDS = 7 * 24 * 3600


@dataclass
class Run:
    """One try to make a selection: `done` of `total` in `unit`, queries or passages looked at, `rate` a second."""

    prefix: str
    state: Literal["running", "ready", "failed"] = "running"
    done: int = 0
    total: int = 0
    unit: str = "queries"
    rate: float | None = None
    first: tuple[int, float] = (0, 0.0)
    ref: ManifestRef | None = None
    error: dict[str, Any] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    begun: bool = False

    def told(self, done: int, total: int, unit: str, now: float) -> None:
        """Take progress in. What an earlier process had done does not count as speed of this one."""
        if unit != self.unit or done < self.done or not self.total:
            self.first = (done, now)
        since, begun = self.first
        self.rate = (done - since) / (now - begun) if done > since and now > begun else None
        self.done, self.total, self.unit = done, total, unit

    @property
    def adoptable(self) -> bool:
        """Whether asking again for the same must not begin anew."""
        return self.state != "failed" or not (self.error or {}).get("retryable")


class _Stopped(Exception):
    """Nobody wants it any more, a newer attempt took over, or the process ends. Control flow."""


class SelectionRuns:
    """Runs selections, a few at once, and remembers the latest of each artifact id. Thread-safe.

    What it remembers ends with the process: then whoever wants the selection asks for it again.
    """

    def __init__(
        self,
        loads: CorpusLoads,
        store: ArtifactStore,
        scratch: Path,
        stop: threading.Event,
        *,
        at_once: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loads = loads
        self._store = store
        self._scratch = scratch
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="selection")
        drop_untouched(scratch / "selections", _FORGOTTEN_SECONDS)  # of selections that nobody came back for

    def put(self, artifact: str, request: SelectionRequest) -> None:
        """Make the selection unless it is made or being made under the same prefix.

        Another prefix is another attempt: it stops the one before it. Raises InvalidRecipe for impossible params.
        """
        params = _params(request)
        with self._lock:
            before = self._runs.pop(artifact, None)
            if before is not None and before.prefix == request.prefix and before.adoptable:
                self._runs[artifact] = before
                return
            if before is not None:
                before.stop.set()
            run = self._runs[artifact] = Run(request.prefix)
            self._forget_old()
        self._pool.submit(self._run, artifact, request, params, run)

    def get(self, artifact: str) -> Run | None:
        """The latest run of `artifact`, or None if nothing is known of it (any more).

        A run whose files are lost or damaged is forgotten: whoever wants the selection then asks for it again.
        """
        with self._lock:
            run = self._runs.get(artifact)
        if run is None or run.ref is None or self._stands(run.ref):
            return run
        with self._lock:
            if self._runs.get(artifact) is run:
                del self._runs[artifact]
        return None

    def stop(self, artifact: str, prefix: str) -> bool:
        """Stop the selection of `artifact`, if it is made for a folder whose name begins with `prefix`.

        Answers whether it runs no more; until then it comes to the end of its batch. What it has done is kept for
        whoever asks for the same selection next, unless it is a failure.
        """
        with self._lock:
            run = self._runs.get(artifact)
            if run is not None and run.state == "failed":
                del self._runs[artifact]
            if run is None or run.state != "running" or not run.prefix.startswith(prefix):
                return True
            run.stop.set()
            if not run.begun:
                del self._runs[artifact]
            return not run.begun

    def close(self) -> None:
        """End what is under way."""
        self._pool.shutdown(cancel_futures=True)

    def _forget_old(self) -> None:
        over = [name for name, run in self._runs.items() if run.state != "running"]
        for name in over[: max(0, len(self._runs) - _REMEMBERED)]:
            del self._runs[name]

    def _run(self, artifact: str, request: SelectionRequest, params: Selection, run: Run) -> None:
        with self._lock:
            run.begun = not run.stop.is_set()
        if not run.begun:
            return
        try:
            self._end(run, self._written(artifact, request.prefix) or self._select(artifact, request, params, run))
        except _Stopped:
            log.info("selection %s under %s stopped", artifact, request.prefix)
            with self._lock:
                if self._runs.get(artifact) is run:
                    del self._runs[artifact]
        except TLMError as error:
            log.warning("selection %s failed: %s", artifact, error)
            if not error.retryable:
                shutil.rmtree(self._parts(artifact), ignore_errors=True)
            run.error, run.state = error.as_dict(), "failed"
        except Exception as error:
            # Without this the selection would seem to go on for ever.
            log.exception("selection %s failed", artifact)
            run.error, run.state = TLMError(f"selecting failed: {error!r}; see the retriever's log").as_dict(), "failed"

    def _end(self, run: Run, ref: ManifestRef) -> None:
        """The run is ready; if it was stopped while its files were written, these go."""
        with self._lock:
            if not run.stop.is_set():
                run.ref, run.state = ref, "ready"
        if run.ref is None:
            self._store.delete(run.prefix)
            raise _Stopped

    def _select(self, artifact: str, request: SelectionRequest, params: Selection, run: Run) -> ManifestRef:
        def progress(done: int, total: int, unit: str) -> None:
            if run.stop.is_set() or self._stop.is_set():
                raise _Stopped
            run.told(done, total, unit, self._clock())

        task = self._store.localize(request.task)
        source = self._source(request, params, task)
        parts = self._parts(artifact)
        folder = self._scratch / "selections" / f"{artifact}-{uuid.uuid4().hex}"
        try:
            facts = select(Task.read(task), source, params, folder, seed=request.seed, scratch=parts, progress=progress)
            meta: dict[str, Any] = {key: facts[key] for key in ("passages", "corpus") if key in facts}
            progress(run.done, run.total, run.unit)
            ref = self._store.write(request.prefix, folder, artifact=artifact, stage="select", meta=meta)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(parts, ignore_errors=True)
        return ref

    def _parts(self, artifact: str) -> Path:
        """Where work under way lies. The artifact's name is that of its content, so whatever attempt, and whatever
        process before a restart, has left something there, it still holds."""
        return self._scratch / "selections" / artifact

    def _source(self, request: SelectionRequest, params: Selection, task: Path) -> Corpus | Path | None:
        """What to select from: the corpus, or what came with the data set."""
        if params.selector == "given":
            if not (task / GIVEN).is_file():
                raise InvalidRequest("the data set brings no selection; upload it with a part 'selection'")
            return task / GIVEN
        if request.corpus is None or request.version is None:
            raise InvalidRequest(f"selector '{params.selector}' needs a corpus and its version")
        key = CorpusKey(request.tenant, request.corpus, request.version)
        return Corpus(key.name, key.version, self._loads.ready(key, patient=True))

    def _written(self, artifact: str, prefix: str) -> ManifestRef | None:
        """What an earlier process finished under this very prefix without living to tell."""
        path = self._store.path(prefix, MANIFEST)
        with self._store.errors(f"looking into {prefix}"):
            body = self._store.fs.cat_file(path) if self._store.fs.exists(path) else b""
        try:
            manifest = Manifest.model_validate_json(body)
        except ValidationError:
            return None
        ref = ManifestRef(folder=prefix, digest=manifest.digest)
        return ref if manifest.artifact == artifact and self._stands(ref) else None

    def _stands(self, ref: ManifestRef) -> bool:
        """Whether what was written is still there, as the coordinator looks at it before it takes it."""
        try:
            self._store.check(ref)
        except (NotFound, CorruptArtifact) as error:
            log.warning("the selection in %s is lost and will be made again: %s", ref.folder, error)
            return False
        return True


def _params(request: SelectionRequest) -> Selection:
    try:
        return Selection.model_validate(request.params)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidRecipe(f"the selection's params do not hold: {problems}") from error
