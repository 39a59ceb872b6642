"""Checkpoints of one stage. One attempt writes and publishes them, and the next attempt reads them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from services.common.jobstore import CheckpointRef, JobStore
from services.common.metrics import CHECKPOINTS
from services.trainer.patience import patiently
from tlm_core.artifacts import storage_errors
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import Conflict, CorruptArtifact, NotFound, Outage, TLMError
from tlm_core.jobs.spec import JobRecord
from tlm_core.pulse import PULSE

log = logging.getLogger(__name__)


@dataclass
class JobCheckpoints:
    """Implements `Checkpoints` (tlm_core.training.stage) with the storage and the job store.

    A thread writes the checkpoints while training continues. `save` first waits until the previous checkpoint is
    written. It logs the Outage of a failed save. If two saves in a row fail, it raises the Outage of the second save.
    After a save, at most `keep` checkpoints remain: the new checkpoint, and those with the highest steps.

    scratch: local folder for the files of a checkpoint before they move to the storage. report_event: a function that
    `latest` calls with the event `stage.resumed` and the step of the checkpoint.
    """

    store: JobStore
    artifacts: ArtifactStore
    job: JobRecord
    node: str
    artifact: str
    scratch: Path
    report_event: Callable[..., None] = lambda *_, **__: None
    keep: int = 2

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._failed = False

    def latest(self) -> Path | None:
        """Return the local folder of the intact checkpoint with the highest step, or None."""
        skipped: list[CheckpointRef] = []
        # Another job may have replaced the missing checkpoint, so each try reads the list again.
        while checkpoints := [each for each in patiently(self._published) if each not in skipped]:
            checkpoint = checkpoints[-1]
            try:
                folder = patiently(partial(self._intact, checkpoint))
                self.report_event("stage.resumed", node=self.node, step=checkpoint.step)
                return folder
            except (NotFound, CorruptArtifact) as error:
                log.warning("Skipped the damaged checkpoint %s of %s: %s", checkpoint.step, self.node, error)
                skipped.append(checkpoint)
        return None

    def _intact(self, checkpoint: CheckpointRef) -> Path:
        self.artifacts.verify(checkpoint.ref)
        return self.artifacts.localize(checkpoint.ref)

    def save(self, write: Callable[[Path], None], *, step: int, metrics: Mapping[str, float | None]) -> None:
        self._wait(required=self._failed)
        self._save = partial(self._write, write, step, dict(metrics))
        self._pending = self._pool.submit(self._save)

    def newest(self) -> int | None:
        with suppress(Outage):
            if self._pending is not None:
                self._pending.result()
        checkpoints = patiently(self._published)
        return checkpoints[-1].step if checkpoints else None

    def close(self, *, required: bool) -> None:
        """Wait for the last save. required: retry a failed save with `patiently`, and raise its last Outage."""
        try:
            self._wait(required=required)
        except Outage:
            patiently(self._save)
        finally:
            self._pool.shutdown()

    def drop(self) -> None:
        """Delete the job's checkpoints for `artifact`. Call this if the stage published its result under another id."""
        try:
            for checkpoint in self._published():
                if checkpoint.job == self.job.id:
                    self._delete(checkpoint)
        except Outage as error:
            log.warning("Cannot delete the checkpoints of %s: %s", self.node, error)

    def _published(self) -> list[CheckpointRef]:
        return self.store.checkpoints(self.job.tenant, self.artifact)

    def _wait(self, *, required: bool) -> None:
        """Wait for the pending save. If the save fails with an Outage, raise the Outage if `required`, else log it."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            with PULSE.pace(steady=False) if not pending.done() else nullcontext():
                pending.result()
            self._failed = False
        except Outage as error:
            if required:
                raise
            self._failed = True
            log.warning("Cannot save a checkpoint of %s: %s", self.node, error)

    @CHECKPOINTS.time()
    def _write(self, write: Callable[[Path], None], step: int, metrics: dict[str, float | None]) -> None:
        tenant, job, attempt = self.job.tenant, self.job.id, self.job.attempt
        target = f"{tenant}/checkpoints/{self.artifact}/{job}-{attempt}/step-{step:09d}"
        folder = self.scratch / f"checkpoint-{step}"
        try:
            with storage_errors(f"writing {folder}"):
                shutil.rmtree(folder, ignore_errors=True)  # left by a try that could not publish
                folder.mkdir()
            write(folder)
            artifact = f"{self.artifact}/{step}"
            ref = self.artifacts.write(target, folder, artifact=artifact, stage="checkpoint", meta={"step": step})
        except Outage:
            # On a full disk, a partial checkpoint would leave no room for the next checkpoint.
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(TLMError):
                self.artifacts.delete(target)
            raise
        own = CheckpointRef(ref=ref, step=step, node=self.node, job=job, attempt=attempt, metrics=metrics)
        try:
            self.store.publish_checkpoint(tenant, self.artifact, own)
        except Conflict:  # The attempt has ended. No other code deletes these files.
            self.artifacts.delete(target)
            raise
        # The last checkpoint of this job always remains: those with higher steps may be damaged or of another job.
        by_value = sorted(self._published(), key=lambda checkpoint: (checkpoint == own, checkpoint.step))
        for checkpoint in by_value[: -self.keep]:
            self._delete(checkpoint)

    def _delete(self, checkpoint: CheckpointRef) -> None:
        self.store.drop_checkpoint(self.job.tenant, self.artifact, checkpoint, by=self.job)
        self.artifacts.delete(checkpoint.ref.folder)
