"""The work of one training worker: the stages of one group, in order. This module does not import Ray."""

from __future__ import annotations

import logging
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from services.common.jobstore import JobStore
from services.common.logs import redacted
from services.common.situation import Situation, folder_prefix
from services.trainer.assignment import Assignment
from services.trainer.checkpoints import JobCheckpoints
from services.trainer.patience import patiently, report_error
from services.trainer.reporter import JobReporter
from services.trainer.scratch import work_folder
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import (
    CorruptArtifact,
    NotFound,
    StaleAttempt,
    StorageUnavailable,
    TLMError,
    WorkerFailed,
    WorkerLost,
)
from tlm_core.jobs.plan import Node, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import ACTIVE
from tlm_core.training.local import compute
from tlm_core.training.params import NOT_CACHED, TrainParams
from tlm_core.training.speed import HAD_CORE
from tlm_core.training.stage import DROPPED, Stage, StageContext, StageFunction, StopRequested

log = logging.getLogger(__name__)

T = TypeVar("T")
_OWN_LOGGERS = ("services.", "tlm_core.")
_DRAINED = "Worker was stopped with its machine (SIGTERM)."
_DRAINED_ELSEWHERE = (
    "The attempt ended at a checkpoint, because another process of the attempt received SIGTERM, or because the "
    "cluster has room for more workers."
)
_MAX_REASON = 300  # characters of an unexpected error in a job's record


class Broadcast(Protocol):
    """Returns the argument of rank 0 on every rank. Each rank waits until rank 0 calls the function too."""

    def __call__(self, value: T, /) -> T: ...


class NullReporter:
    """Discards the reports of ranks above 0. Rank 0 alone decides when all ranks stop."""

    def progress(self, **_: object) -> bool:
        return True

    def metrics(self, **_: object) -> None: ...

    def event(self, type: str, **_: object) -> None: ...

    def flush(self) -> None: ...


@dataclass(frozen=True)
class GroupRunner:
    """Runs the stages of an assignment on this rank.

    load: a function that returns the function of a stage. draining: when set, the stage must stop at a checkpoint.
    device: name of the GPU or processor, for the event `stage.started`. cores: the share of a core that Ray reserves
    for the worker's thread.
    """

    store: JobStore
    artifacts: ArtifactStore
    scratch: Path
    load: Callable[[Stage], StageFunction] = Stage.load
    rank: int = 0
    world_size: int = 1
    broadcast: Broadcast = lambda value: value
    draining: threading.Event = field(default_factory=threading.Event)
    device: str = ""
    cores: float = 1.0

    def run(self, assignment: Assignment) -> None:
        """Run all stages whose artifacts are not published.

        Returns early if the job is paused or cancelled, or if `draining` is set; training writes a checkpoint first.
        Reports an error of a stage as event `attempt.error`, and raises it. Raises StaleAttempt if the attempt ended.
        """
        job = patiently(lambda: self._job(assignment))
        reporter = (
            JobReporter(self.store, job.tenant, job.id, job.attempt, assignment.group, draining=self.draining)
            if self.rank == 0
            else None
        )
        handler = _JobLog(reporter) if reporter else logging.NullHandler()
        logging.getLogger().addHandler(handler)
        try:
            self._run_nodes(assignment, [node.name for node in plan_of(job).group(assignment.group)], reporter)
        except StopRequested:
            log.info("Stopped on request")
            if reporter and reporter.draining:
                self._report_error(job, WorkerLost(_DRAINED_ELSEWHERE if reporter.drained_elsewhere else _DRAINED))
        except TLMError as error:
            self._report_error(job, error)
            raise
        except Exception as error:
            log.error("%s", traceback.format_exc())
            # The machine may cause an unexpected error, so a retry on other workers may help.
            self._report_error(job, _unexpected(error, self.rank))
            raise
        finally:
            logging.getLogger().removeHandler(handler)
            if reporter:
                reporter.close()

    def _job(self, assignment: Assignment) -> JobRecord:
        """Return the current record of the job. Raises StaleAttempt if this attempt has ended."""
        job = self.store.get(assignment.tenant, assignment.job)
        if job.attempt != assignment.attempt or job.state not in ACTIVE:
            raise StaleAttempt(
                f"Attempt {assignment.attempt} has ended: job {job.id} is {job.state} in attempt {job.attempt}."
            )
        return job

    def _situation(self, assignment: Assignment) -> Situation:
        """Return the current situation of the job. Rank 0 reads it and broadcasts it to the other ranks."""
        values = None
        if self.rank == 0:
            situation = patiently(lambda: Situation.read(self.store, self._job(assignment)))
            values = (situation.job, situation.done)
        received = self.broadcast(values)
        assert received is not None, "rank 0 has read the situation"
        job, done = received
        return Situation(job, plan_of(job), done)

    def _run_nodes(self, assignment: Assignment, names: list[str], reporter: JobReporter | None) -> None:
        while names:
            situation = self._situation(assignment)  # Each stage may change the job and its plan.
            names = [name for name in names if name not in situation.done]
            if not names:
                return
            node = situation.plan.node(names.pop(0))
            self._check_inputs(situation, node)
            if reporter:
                reporter.start_node(situation, node)
            if not self.broadcast(reporter.should_continue if reporter else None):
                raise StopRequested("The attempt must stop between two stages.")
            if self.rank == 0 or node.stage.parallel:
                self._run_node(situation, node, reporter)
            self.broadcast(None)  # Ranks that compute nothing wait here.

    @staticmethod
    def _check_inputs(situation: Situation, node: Node) -> None:
        """Raise StorageUnavailable if another job or `Archive` has unpublished an input since the attempt began."""
        for source in situation.plan.behind(node.name):
            if source.name not in situation.done:
                raise StorageUnavailable(
                    f"'{node.name}' cannot start, because the artifact of '{source.name}' is no longer published. The "
                    "next attempt computes it again."
                )

    def _run_node(self, situation: Situation, node: Node, reporter: JobReporter | None) -> None:
        dropped = None if node.gathers else self._dropped_input(situation, node)
        if dropped is None:
            job = situation.job
            with work_folder(self.scratch, f"{job.id}-{job.attempt}-{node.name}-{self.rank}") as work:
                self._compute(situation, node, work, reporter or NullReporter())
        elif self.rank == 0:
            patiently(lambda: situation.publish(self.store, node, dropped))

    def _dropped_input(self, situation: Situation, node: Node) -> ManifestRef | None:
        """Return the artifact of the first input that is marked as dropped, or None."""
        for source in node.inputs.values():
            if DROPPED in self._read_input(situation, source, self.artifacts.manifest).meta:
                return situation.done[source]
        return None

    def _compute(self, situation: Situation, node: Node, work: Path, reporter: JobReporter | NullReporter) -> None:
        """Run the node's stage in the empty folder `work` and publish its output."""
        job, artifact = situation.job, situation.artifact_id(node)
        out = work / "out"
        out.mkdir()
        checkpoints = JobCheckpoints(
            self.store, self.artifacts, job, node.name, artifact, work, report_event=reporter.event
        )
        started = {"node": node.name, "stage": node.stage.name, "workers": self.world_size, "device": self.device}
        reporter.event("stage.started", **started)
        localize = self.artifacts.localize
        context = StageContext(
            inputs={name: self._read_input(situation, source, localize) for name, source in node.inputs.items()},
            params=node.params,
            out=out,
            report=reporter,
            checkpoints=checkpoints,
            rank=self.rank,
            world_size=self.world_size,
            scratch=work,
        )
        log.info("Started %s", node.name)
        stopped, began, before = False, time.monotonic(), time.thread_time()
        try:
            meta = self.load(node.stage)(context)
            if isinstance(node.params, TrainParams):
                busy = (time.thread_time() - before) / (time.monotonic() - began)
                meta = {**meta, HAD_CORE: min(1.0, busy / self.cores)}
        except StopRequested:
            stopped = True
            raise
        finally:
            checkpoints.close(required=stopped)
        if self.rank == 0 and self._write(situation, node, out, meta, reporter) != artifact:
            checkpoints.drop()

    def _read_input(self, situation: Situation, source: str, read: Callable[[ManifestRef], T]) -> T:
        """Return the result of `read` for the artifact of the node `source`.

        If the files of the artifact are lost or damaged, invalidates the artifact and raises StorageUnavailable. The
        next attempt computes the artifact again.
        """
        try:
            return patiently(lambda: read(situation.done[source]))
        except (NotFound, CorruptArtifact) as error:
            raise situation.invalidate(self.store, situation.plan.node(source), error) from error

    def _write(
        self,
        situation: Situation,
        node: Node,
        out: Path,
        meta: Mapping[str, object],
        reporter: JobReporter | NullReporter,
    ) -> str:
        """Publish the content of `out` as the node's artifact. Returns the artifact id.

        If `meta` contains a key of NOT_CACHED, the artifact is excluded from the cache, and its id depends on the job.
        """
        job, cached = situation.job, NOT_CACHED.isdisjoint(meta)
        artifact = situation.artifact_id(replace(node, reusable=node.reusable and cached))
        folder = f"{folder_prefix(job, artifact)}{job.attempt}"
        ref = self.artifacts.write(folder, out, artifact=artifact, stage=node.stage.name, meta=meta, retry=patiently)
        log.info("Finished %s", node.name)
        reporter.flush()  # If this is the last artifact, the job ends, and rejects later log lines.
        published = patiently(lambda: situation.publish(self.store, node, ref, artifact=artifact, cached=cached))
        if published != ref:
            self.artifacts.delete(folder)
        return artifact

    def _report_error(self, job: JobRecord, error: TLMError) -> None:
        try:
            report_error(self.store, job.tenant, job.id, job.attempt, error)
        except TLMError as failure:
            log.warning("Cannot report the attempt's error: %s", failure)


def run_local(
    artifacts: ArtifactStore,
    scratch: Path,
    job: JobRecord,
    node: Node,
    artifact: str,
    inputs: Mapping[str, ManifestRef],
) -> ManifestRef:
    """Run a node of Place.COORDINATOR here. Returns the reference of its artifact, or raises the error of the stage.

    inputs: name → reference of an artifact. `node.fixed` adds datasets of the job (name → digest) as inputs.
    """
    datasets = {dataset.ref.digest: dataset.ref for dataset in job.resolved.datasets}
    refs = {**inputs, **{name: datasets[digest] for name, digest in node.fixed.items()}}
    with work_folder(scratch, f"{job.id}-{job.attempt}-{node.name}") as work:
        out, folders = work / "out", {name: artifacts.localize(ref) for name, ref in refs.items()}
        meta = compute(node.stage, folders, node.params, out)
        folder = f"{folder_prefix(job, artifact)}{job.attempt}-{uuid.uuid4().hex[:8]}"
        return artifacts.write(folder, out, artifact=artifact, stage=node.stage.name, meta=meta)


def _unexpected(error: Exception, rank: int) -> WorkerFailed:
    """Return a WorkerFailed with the first line of an unexpected error of worker `rank`, without secrets."""
    reason = redacted(str(error).strip().partition("\n")[0])[:_MAX_REASON]
    place = "the job's log" if rank == 0 else f"the process log of worker {rank}"  # Only rank 0 writes the job's log.
    return WorkerFailed(
        f"Worker failed with {type(error).__name__}: {reason.rstrip('.')}. Read the traceback in {place}."
    )


class _JobLog(logging.Handler):
    """Copies the log lines of this process to the job's log, so that they outlive the worker."""

    def __init__(self, reporter: JobReporter) -> None:
        super().__init__(level=logging.INFO)
        self._reporter = reporter

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True for warnings and errors, and for lines of this project that are not about working folders."""
        if record.levelno >= logging.WARNING:
            return True
        return record.name.startswith(_OWN_LOGGERS) and record.name != work_folder.__module__

    def emit(self, record: logging.LogRecord) -> None:
        source = "" if record.name.startswith(_OWN_LOGGERS) else f"{record.name}: "
        self._reporter.log_line(f"{record.levelname.lower()} {source}{record.getMessage()}")
