"""What runs in each training worker: the stages of one group, one after another. Knows the services, not Ray."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from services.common.artifacts_of import artifact_id, folders_of, published, take_back
from services.common.jobstore import JobStore
from services.trainer.assignment import Assignment
from services.trainer.checkpoints import JobCheckpoints
from services.trainer.meeting import Share
from services.trainer.reporter import JobReporter
from services.trainer.scratch import work_folder
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import CorruptArtifact, NotFound, StaleAttempt, TLMError, WorkerLost
from tlm_core.jobs.plan import DROPPED, Node, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.stages import Stage
from tlm_core.training.params import SHRUNK
from tlm_core.training.stage import StageContext, StopRequested

log = logging.getLogger(__name__)

_Read = TypeVar("_Read")


class SilentReporter:
    """Of ranks that have nothing to tell; whether to stop they learn from rank 0, through the stage itself."""

    def progress(self, **_: Any) -> bool:
        return True

    def metrics(self, **_: Any) -> None: ...

    def event(self, type: str, **_: Any) -> None: ...


class GroupRunner:
    """Runs the stages of an assignment on this rank.

    share: gives every rank the value that rank 0 passes (a broadcast that is a barrier too).
    """

    def __init__(
        self,
        store: JobStore,
        artifacts: ArtifactStore,
        scratch: Path,
        stages: Mapping[str, Stage],
        *,
        rank: int = 0,
        world_size: int = 1,
        share: Share = lambda value: value,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._scratch = scratch
        self._stages = stages
        self._rank = rank
        self._world_size = world_size
        self._share = share

    def run(self, assignment: Assignment) -> None:
        """All stages that are not published yet. Raises what ended it, after the job's log has it too.

        A stop (pause, cancel) is no fault: then it returns, with a checkpoint left where there was something to keep.
        """
        job = self._job(assignment)
        reporter = JobReporter(self._store, job.tenant, job.id, job.attempt) if self._rank == 0 else None
        handler = _JobLog(reporter) if reporter else logging.NullHandler()
        logging.getLogger().addHandler(handler)
        try:
            self._run_nodes(assignment, reporter)
        except StopRequested:
            log.info("stopped as asked")
        except TLMError as error:
            self._tell(job, error)
            raise
        except Exception as error:
            log.error("%s", traceback.format_exc())
            # What we did not foresee may be the machine's fault: it is tried again on other workers.
            self._tell(job, WorkerLost(f"{type(error).__name__}: {error}"))
            raise
        finally:
            logging.getLogger().removeHandler(handler)
            if reporter:
                reporter.close()

    def _job(self, assignment: Assignment) -> JobRecord:
        """The job as it is now. Raises StaleAttempt when this attempt of it is over."""
        job = self._store.get(assignment.tenant, assignment.job)
        if job.attempt != assignment.attempt:
            raise StaleAttempt(f"attempt {assignment.attempt} of {job.id} is over; {job.attempt} is in force")
        return job

    def _run_nodes(self, assignment: Assignment, reporter: JobReporter | None) -> None:
        for name in [node.name for node in plan_of(self._job(assignment)).group(assignment.group)]:
            job = self._job(assignment)  # anew: the node before may be one that no other job may take
            plan = plan_of(job)
            node = plan.node(name)
            done: dict[str, ManifestRef] = self._share(published(self._store, job, plan))
            if name in done:
                continue
            if reporter:
                reporter.start_node(node, plan)
            go_on = self._share(reporter.going_on if reporter else True)
            if not go_on:
                raise StopRequested("the job was asked to stop between two stages")
            self._run_node(job, node, done, reporter)

    def _run_node(
        self, job: JobRecord, node: Node, done: Mapping[str, ManifestRef], reporter: JobReporter | None
    ) -> None:
        if dropped := self._dropped(job, node, done):
            if self._rank == 0:
                artifact = artifact_id(job, node, done)
                self._store.publish(
                    job.tenant, job.id, job.attempt, artifact=artifact, ref=dropped, node=node.name, stage=node.stage
                )
            self._share(None)
            return
        with work_folder(self._scratch, f"{job.id}-{job.attempt}-{node.name}-{self._rank}") as work:
            self._compute(job, node, done, work, reporter or SilentReporter())
        log.info("%s is done", node.name)

    def _compute(
        self,
        job: JobRecord,
        node: Node,
        done: Mapping[str, ManifestRef],
        work: Path,
        report: JobReporter | SilentReporter,
    ) -> None:
        """Run the node's stage in the empty folder `work`, and publish what it made."""
        artifact = artifact_id(job, node, done)
        out = work / "out"
        out.mkdir()
        checkpoints = JobCheckpoints(
            self._store, self._artifacts, job, job.attempt, node.name, artifact, work, tell=report.event
        )
        report.event("stage.started", node=node.name, stage=node.stage)
        context = StageContext(
            inputs={
                name: self._input(job, source, done, self._artifacts.localize) for name, source in node.inputs.items()
            },
            params=node.params,
            out=out,
            report=report,
            checkpoints=checkpoints,
            rank=self._rank,
            world_size=self._world_size,
            scratch=work,
        )
        log.info("%s starts", node.name)
        stopped = False
        try:
            meta = self._stages[node.stage](context)
        except StopRequested:
            stopped = True
            raise
        finally:
            checkpoints.close(needed=stopped)
        if self._rank == 0 and self._publish(job, node, done, out, meta) != artifact:
            checkpoints.drop()
        self._share(None)

    def _dropped(self, job: JobRecord, node: Node, done: Mapping[str, ManifestRef]) -> ManifestRef | None:
        """The input that stands for work left out, if one does and the node cannot do without."""
        for source in () if node.gathers else node.inputs.values():
            if DROPPED in self._input(job, source, done, self._artifacts.manifest).meta:
                return done[source]
        return None

    def _input(
        self, job: JobRecord, source: str, done: Mapping[str, ManifestRef], read: Callable[[ManifestRef], _Read]
    ) -> _Read:
        """What `read` gives of the node `source`. Where its files are lost or changed since they were looked at, it is
        taken back, and StorageUnavailable raised: the next attempt makes it again."""
        try:
            return read(done[source])
        except (NotFound, CorruptArtifact) as error:
            raise take_back(self._store, job, plan_of(job).node(source), done, error) from error

    def _publish(
        self, job: JobRecord, node: Node, done: Mapping[str, ManifestRef], out: Path, meta: Mapping[str, Any]
    ) -> str:
        """Make what is in `out` the node's artifact. Returns its id: the job's own, if it had to shrink for memory."""
        shared = SHRUNK not in meta
        artifact = artifact_id(job, replace(node, reusable=node.reusable and shared), done)
        folder = f"{folders_of(job, artifact)}{job.attempt}"
        ref = self._artifacts.write(folder, out, artifact=artifact, stage=node.stage, meta=meta)
        in_force = self._store.publish(
            job.tenant,
            job.id,
            job.attempt,
            artifact=artifact,
            ref=ref,
            node=node.name,
            stage=node.stage,
            shared=shared,
        )
        if in_force != ref:
            self._artifacts.delete(folder)
        return artifact

    def _tell(self, job: JobRecord, error: TLMError) -> None:
        try:
            self._store.report(job.tenant, job.id, job.attempt, events=[("attempt.error", error.as_dict())])
        except TLMError as untold:
            log.warning("the attempt's error could not be told: %s", untold)


class _JobLog(logging.Handler):
    """Copies this process's log lines to the job's log, where they outlive the worker."""

    def __init__(self, reporter: JobReporter) -> None:
        super().__init__(level=logging.INFO)
        self._reporter = reporter

    def filter(self, record: logging.LogRecord) -> bool:
        """Ours whole; of libraries only what is a warning."""
        return record.levelno >= logging.WARNING or record.name.startswith(("services.", "tlm_core."))

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.line(f"{record.levelname.lower()} {record.name}: {record.getMessage()}")
