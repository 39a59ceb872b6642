"""Checkpoints of one stage: written by one attempt, published through a fenced step, found by the next attempt."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from services.common.jobstore import CheckpointRef, JobStore
from tlm_core.artifacts import ArtifactStore, storage_errors
from tlm_core.errors import CorruptArtifact, NotFound, StorageFull, TLMError, Unavailable
from tlm_core.jobs.spec import JobRecord

log = logging.getLogger(__name__)


class JobCheckpoints:
    """`Checkpoints` (tlm_core.training.stage) over storage and job store; keeps `keep`: its last and the furthest.

    scratch: where a checkpoint's files lie until they are moved to the storage. Saving, writing them included, happens
    beside training: only when the one before is still being written does `save` wait for it, and only the second
    failure in a row ends the stage, as long as it trains. tell: hears, as an event, from which checkpoint it goes on.
    """

    def __init__(
        self,
        store: JobStore,
        artifacts: ArtifactStore,
        job: JobRecord,
        attempt: int,
        node: str,
        artifact: str,
        scratch: Path,
        *,
        tell: Callable[..., None] = lambda *_, **__: None,
        keep: int = 2,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._job = job
        self._attempt = attempt
        self._node = node
        self._artifact = artifact
        self._scratch = scratch
        self._tell = tell
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._failed = False

    def latest(self) -> Path | None:
        """The furthest that is whole; a broken one is passed over and said so."""
        for checkpoint in reversed(self._store.checkpoints(self._job.tenant, self._artifact)):
            try:
                self._artifacts.verify(checkpoint.ref)
                folder = self._artifacts.localize(checkpoint.ref)
                self._tell("stage.resumed", node=self._node, step=checkpoint.step)
                return folder
            except (NotFound, CorruptArtifact) as error:
                log.warning("checkpoint %s of %s is passed over: %s", checkpoint.step, self._node, error)
        return None

    def save(self, write: Callable[[Path], None], *, step: int, metrics: Mapping[str, float | None]) -> None:
        self._settle(bearable=not self._failed)
        self._pending = self._pool.submit(self._write, write, step, dict(metrics))

    def newest(self) -> int | None:
        with suppress(Unavailable, StorageFull):
            if self._pending is not None:
                self._pending.result()
        found = self._store.checkpoints(self._job.tenant, self._artifact)
        return found[-1].step if found else None

    def close(self, *, needed: bool) -> None:
        """Wait for the last save. needed: a job is to go on from it; raises Unavailable or StorageFull if it failed."""
        try:
            self._settle(bearable=not needed)
        finally:
            self._pool.shutdown()

    def drop(self) -> None:
        """Take back those of this job: its stage is published under another id, so that nothing leads to them."""
        try:
            for checkpoint in self._store.checkpoints(self._job.tenant, self._artifact):
                if checkpoint.job == self._job.id:
                    self._take_back(checkpoint)
        except (Unavailable, StorageFull) as error:
            log.warning("checkpoints of %s are left behind: %s", self._node, error)

    def _settle(self, *, bearable: bool) -> None:
        """Wait for the save under way. bearable: if the storage did not take it, that is only said."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
            self._failed = False
        except (Unavailable, StorageFull) as error:
            if not bearable:
                raise
            self._failed = True
            log.warning("a checkpoint of %s could not be kept: %s", self._node, error)

    def _write(self, write: Callable[[Path], None], step: int, metrics: dict[str, float | None]) -> None:
        tenant, job = self._job.tenant, self._job.id
        place = f"{tenant}/checkpoints/{self._artifact}/{job}-{self._attempt}/step-{step:09d}"
        folder = self._scratch / f"checkpoint-{step}"
        try:
            with storage_errors(f"writing {folder}"):
                folder.mkdir()
            write(folder)
            ref = self._artifacts.write(
                place, folder, artifact=f"{self._artifact}/{step}", stage="checkpoint", meta={"step": step}
            )
        except (Unavailable, StorageFull):
            # On a full disk, the files that found room would keep the next checkpoint from finding any.
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(TLMError):
                self._artifacts.delete(place)
            raise
        made = CheckpointRef(ref=ref, step=step, node=self._node, job=job, attempt=self._attempt, metrics=metrics)
        self._store.publish_checkpoint(tenant, self._artifact, made)
        # What is further may be another job's, or broken: then this one has to go on from its own.
        found = sorted(self._store.checkpoints(tenant, self._artifact), key=lambda one: (one == made, one.step))
        for old in found[: -self._keep]:
            self._take_back(old)

    def _take_back(self, checkpoint: CheckpointRef) -> None:
        self._store.drop_checkpoint(self._job.tenant, self._artifact, checkpoint)
        self._artifacts.delete(checkpoint.ref.folder)
