"""One job that a coordinator drives: its stages, the end of its attempts, and its stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

from services.common.jobstore import JobStore
from services.common.metrics import FAILURES, FIRST_STEP, REQUEUES, STAGES
from services.common.progress import progress_of
from services.common.situation import Situation
from services.trainer.local_stages import LocalStages
from services.trainer.selections import Selections
from services.trainer.submissions import AttemptEnded, RoundTimes, Submissions
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import (
    CorruptArtifact,
    IllegalTransition,
    NotFound,
    Outage,
    RuntimeExceeded,
    StaleAttempt,
    StorageFull,
    StorageUnavailable,
    TLMError,
    TrainingFailed,
    WorkerLost,
    is_hub_outage,
)
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import ACTIVE, State
from tlm_core.training.stage import DROPPED, Place

log = logging.getLogger(__name__)

KEEPS_SLOT_SECONDS = 60.0  # A requeued job retains its slot for this long before its next attempt.


@dataclass
class HeldJob:
    """A job that a coordinator drives. A restarted coordinator can rebuild every field.

    - ending: whether a verb that ends the attempt was sent. verified: artifacts whose files have been checked.
    - released: whether the coordinator must stop driving the job. requeued: whether the job is in the queue again.
    - selecting: artifact id of a selection → its progress (unit, count), and the time of the last change.
    - waiting: code of the error for which the job waits, such as "unavailable". rate: tokens per second of all groups.
    - claimed_at: when the attempt was claimed. None after the first step on a worker, and for an adopted attempt.
    - began: node → when a round first saw its progress. idle: whether only workers can continue, and no worker works.
    """

    tenant: str
    id: str
    store: JobStore
    artifacts: ArtifactStore
    selections: Selections
    submissions: Submissions
    local: LocalStages
    ending: bool = False
    released: bool = False
    requeued: bool = False
    verified: set[ManifestRef] = field(default_factory=set)
    selecting: dict[str, tuple[tuple[str, int], float]] = field(default_factory=dict)
    waiting: str | None = None
    waiting_since: float = 0.0
    stopping_since: float | None = None
    claimed_at: float | None = None
    began: dict[str, float] = field(default_factory=dict)
    rate: float = 0.0
    idle: bool = False
    attempt: int = 0
    request_id: str = ""
    times: RoundTimes = field(default_factory=RoundTimes)

    def __post_init__(self) -> None:
        self.settings, self.owner = self.submissions.settings, self.submissions.owner

    @property
    def ids(self) -> dict[str, object]:
        """The fields of log lines about the job."""
        return {"job_id": self.id, "attempt": self.attempt, "request_id": self.request_id}

    def advance(self, job: JobRecord, times: RoundTimes) -> TLMError | None:
        """Take the next step of the job. Returns the error that ends the attempt, or None.

        Raises an Outage if a component does not answer. Raises IllegalTransition or StaleAttempt if the record in the
        store has changed since `job` was read.
        """
        self.times = times
        try:
            match job.state:
                case State.RUNNING:
                    self._drive(job)
                case State.PAUSING:
                    self._pause(job)
                case State.CANCELLING:
                    self._cancel(job)
                case _:
                    self._release(job)
        except (IllegalTransition, StaleAttempt, Outage):
            raise
        except AttemptEnded as ended:
            return ended.error
        except TLMError as error:
            return error
        except Exception as error:  # A bug that one job reveals must not end the coordinator and its other jobs.
            log.exception("Internal error in job %s", job.id)
            return TrainingFailed(f"Internal error: {type(error).__name__}: {error}. See the log of the trainer.")
        # The repeated start of a stage in this process does not show that an outage of the storage is over.
        if not self.local.retrying or self.waiting not in (StorageUnavailable.code, StorageFull.code):
            self.waiting = None
        return None

    # --- running ------------------------------------------------------------------------------------------------

    def _drive(self, job: JobRecord) -> None:
        """Start each node that is ready, or check its progress. Finish the job when all its nodes are done."""
        self._check_runtime(job)
        situation = self._verified_situation(job)
        plan, done = situation.plan, situation.done
        self._measure(situation)
        if self._give_up_hung_stages():
            minutes = f"{self.settings.local_seconds / 60:.0f} minutes"
            raise AttemptEnded(
                WorkerLost(f"A stage in the coordinator ran for {minutes}. Check whether the storage hangs.")
            )
        self._drop_copies(situation)
        if len(done) == len(plan.nodes):  # The last node alone does not suffice: some nodes are no inputs of it.
            self._finish(situation)
            return
        groups: set[str] = set()
        for node in situation.ready():
            match node.place:
                case Place.COORDINATOR:
                    self._run_here(situation, node)
                case Place.RETRIEVER:
                    self._select(situation, node)
                case Place.WORKERS:
                    groups.add(node.group)
        for group in sorted(groups):
            if plan.startable(group, done):
                self.submissions.advance(situation, group, self.times)

    def _measure(self, situation: Situation) -> None:
        """Record the speed of the job and the durations of its stages for Prometheus."""
        job, done, ready, now = situation.job, situation.done, situation.ready(), time.monotonic()
        working = {node.group for node in ready if node.place is Place.WORKERS and job.works(node.group)}
        self.rate = sum(job.beats[group].rate for group in working)
        self.idle = not working and all(node.place is Place.WORKERS for node in ready)
        for node in ready:
            # Until the workers of this attempt work, the progress of their stage is of an earlier attempt.
            waits = node.place is Place.WORKERS and node.group not in working
            if not job.progress or node.name != job.progress.node or waits:
                continue
            STAGES.labels(node.stage.name)  # Prometheus must see 0 before the first end of the stage.
            self.began.setdefault(node.name, now)
            if self.claimed_at is not None and job.progress.step and node.place is Place.WORKERS:
                FIRST_STEP.observe(now - self.claimed_at)
                self.claimed_at = None
        for name in self.began.keys() & done.keys():
            STAGES.labels(situation.plan.node(name).stage.name).observe(now - self.began.pop(name))

    def _check_runtime(self, job: JobRecord) -> None:
        """Stop the workers and raise AttemptEnded if the job has run longer than `max_runtime_seconds`."""
        limit = job.spec.max_runtime_seconds
        runtime = job.ran_seconds  # The renewals of the lease count this time.
        if limit is None or runtime < limit:
            return
        self.submissions.stop(job, running=True)
        raise AttemptEnded(
            RuntimeExceeded(
                f"The job ran for {runtime:.0f} s. Its limit max_runtime_seconds is {limit:g}. Clone the job with a "
                "higher limit. The clone continues from the last checkpoint."
            )
        )

    def _verified_situation(self, job: JobRecord) -> Situation:
        """Return the job's situation. Checks each artifact once, and invalidates it if files are lost or damaged."""
        situation = Situation.read(self.store, job)
        for name, ref in situation.done.items():
            if ref in self.verified:
                continue
            try:
                self.artifacts.check(ref)
            except (NotFound, CorruptArtifact) as error:
                situation.invalidate(self.store, situation.plan.node(name), error)
                return self._verified_situation(job)
            self.verified.add(ref)
        return situation

    def _run_here(self, situation: Situation, node: Node) -> None:
        """Start a stage in a thread of this process. Once the stage has ended, publish its output."""
        artifact = situation.artifact_id(node)
        if artifact not in self.local.runs:
            self._report_progress(situation, node)
            inputs = {name: situation.done[source] for name, source in node.inputs.items()}
            self.local.start(situation.job, node, artifact, inputs)
            return
        try:
            ref = self.local.output(artifact)
        except (NotFound, CorruptArtifact) as error:
            self._fail_stage(situation, node, error)
        if ref is None:
            return
        published = situation.publish(self.store, node, ref)
        self.local.forget(artifact)
        if published != ref:
            self.artifacts.delete(ref.folder)

    def _give_up_hung_stages(self) -> bool:
        """Give up the stages of the job that hang in this process. Return whether any stage hung."""
        hung = self.local.give_up_hung(self.settings.local_seconds)
        if hung:
            log.error("Stages of job %s hang in this process. The coordinator starts new threads.", self.id)
        return hung

    def _drop_copies(self, situation: Situation) -> None:
        """Forget ended stages of this process whose artifacts another job has published first. Delete their outputs."""
        awaited = {situation.artifact_id(node) for node in situation.ready()}
        for ref in self.local.forget_ended(awaited):
            if ref not in situation.done.values():
                self.artifacts.delete(ref.folder)

    def _select(self, situation: Situation, node: Node) -> None:
        """Request the selection from the retriever. Once the selection is ready, publish its artifact."""
        job, artifact = situation.job, situation.artifact_id(node)
        task = situation.done[node.inputs["task"]]
        try:
            dropped = DROPPED in self.artifacts.manifest(task).meta
        except (NotFound, CorruptArtifact) as error:
            self._fail_stage(situation, node, error)
        if dropped:
            situation.publish(self.store, node, task)
            return
        check_owner = partial(self.submissions.check_owner, job)
        run = self.selections.request(job, node, artifact, task=task, check_owner=check_owner)
        if run.ref is not None:
            situation.publish(self.store, node, run.ref)
        elif run.state == "failed":
            check_owner()
            self.selections.stop(job, artifact)  # The retriever forgets the failure, so the next attempt retries.
            unknown = TLMError("The retriever failed without a reason. Read its log.")
            self._fail_stage(situation, node, run.failure or unknown)
        else:
            if run.total:  # Otherwise the selection waits for other selections or for its index.
                self._check_selection(artifact, (run.unit, run.done))
            self._report_progress(situation, node, step=run.done, total=run.total, unit=run.unit, rate=run.rate)

    def _check_selection(self, artifact: str, progress: tuple[str, int]) -> None:
        """Raise AttemptEnded if the progress (unit, count) of a selection has not changed for `selection_seconds`."""
        now, stall_grace_until = self.times
        before, since = self.selecting.get(artifact, (progress, now))
        since = min(since, now) if before == progress else now  # The clock may go back.
        self.selecting[artifact] = progress, since
        idle = now - max(since, stall_grace_until)
        if idle > self.settings.selection_seconds:
            message = f"The selection made no progress for {idle:.0f} s. The coordinator stopped it."
            raise AttemptEnded(WorkerLost(f"{message} Read the retriever's log."))

    def _fail_stage(self, situation: Situation, node: Node, error: TLMError) -> NoReturn:
        """Raise AttemptEnded with the error of a stage, or with the error of a lost or damaged input.

        Invalidates lost and damaged inputs, so that the next attempt computes them again.
        """
        if isinstance(error, NotFound | CorruptArtifact):
            for source in set(node.inputs.values()):
                try:
                    self.artifacts.verify(situation.done[source])
                except (NotFound, CorruptArtifact) as damage:
                    error = situation.invalidate(self.store, situation.plan.node(source), damage)
        raise AttemptEnded(error)

    def _finish(self, situation: Situation) -> None:
        job, plan, done = situation.job, situation.plan, situation.done
        artifacts = {
            node.name: {"artifact": situation.artifact_id(node), "ref": done[node.name].model_dump()}
            for node in plan.nodes
        }
        try:
            summary = self.artifacts.manifest(done[plan.report]).meta
        except (NotFound, CorruptArtifact) as error:
            raise AttemptEnded(situation.invalidate(self.store, plan.node(plan.report), error)) from error
        self._end(self.store.finish, job, {"artifacts": artifacts, "summary": summary})
        log.info("Finished job %s", job.id)

    def _report_progress(
        self,
        situation: Situation,
        node: Node,
        *,
        step: int = 0,
        total: int = 0,
        unit: str = "rows",
        rate: float | None = None,
    ) -> None:
        job, eta_seconds = situation.job, (total - step) / rate if rate else None
        progress = progress_of(situation, node, step=step, total=total, unit=unit, rate=rate, eta_seconds=eta_seconds)
        if job.progress != progress:
            self.store.report(job.tenant, job.id, job.attempt, progress=progress)

    # --- ending -------------------------------------------------------------------------------------------------

    def _pause(self, job: JobRecord) -> None:
        """Confirm the pause once the workers have ended. They have `pause_seconds` to write a checkpoint."""
        if self._has_stopped(job, grace=self.settings.pause_seconds):
            self._end(self.store.confirm_paused, job)

    def _cancel(self, job: JobRecord) -> None:
        if self._has_stopped(job, grace=0.0):
            self._end(self.store.confirm_cancelled, job)

    def _has_stopped(self, job: JobRecord, *, grace: float) -> bool:
        """Stop the submissions, local stages and selections of an attempt. Return whether all have stopped.

        A waiting submission is stopped at once, a submission with running workers only after `grace` seconds.
        """
        now = self.times.now
        self.stopping_since = min(self.stopping_since or now, now)  # The clock may go back.
        workers_stopped = self.submissions.stop(job, running=now - self.stopping_since >= grace)
        self.local.cancel_waiting()
        self._give_up_hung_stages()
        selections_stopped = self._stop_selections(job)
        return selections_stopped and workers_stopped and self.local.have_ended

    def _stop_selections(self, job: JobRecord) -> bool:
        """Stop the selections for which the job waits. Return whether all of them have stopped."""
        situation = Situation.read(self.store, job)
        artifacts = [situation.artifact_id(node) for node in situation.ready() if node.place is Place.RETRIEVER]
        if artifacts:
            self.submissions.check_owner(job)
        stopped = [self.selections.stop(job, artifact) for artifact in artifacts]
        return all(stopped)

    def end_attempt(self, job: JobRecord, error: TLMError) -> None:
        """Requeue a running job if the error is retryable and attempts are left. Otherwise, the job fails.

        Exceptions: a cancelling job is cancelled. A pausing job is paused if the error is retryable.
        """
        if isinstance(error, StorageFull):  # A full storage is no fault of the job. The next attempt waits for space.
            error = StorageUnavailable(error.message)
        # Workers and selections that still run cannot publish, but they occupy the room of the next attempt.
        for name, stop in (
            ("selections", lambda: self._stop_selections(job)),
            ("workers", lambda: self.submissions.stop(self._read_again(job), running=True)),
        ):
            try:
                stop()
            except Exception as failure:  # The attempt ends anyway.
                log.warning("Cannot stop the %s of job %s: %s", name, job.id, failure)
        job = self._read_again(job)
        failures, losses, hub_losses = job.spent(error)
        requeues = error.retryable and failures < job.spec.max_attempts and job.state is State.RUNNING
        if isinstance(error, WorkerLost) and job.state is State.RUNNING:
            error = error.followed_by(self._next_attempt(job, requeues=requeues))
        self.store.report(job.tenant, job.id, job.attempt, logs=[f"error {__name__}: {error.message}"])
        if job.state is State.CANCELLING:
            self._end(self.store.confirm_cancelled, job)
        elif job.state is State.PAUSING and error.retryable:
            self._end(self.store.confirm_paused, job)
        elif requeues:
            self._end(self.store.requeue, job, error, _delay(error, failures, losses, hub_losses))
            log.warning("Requeued job %s after attempt %d: %s", job.id, job.attempt, error)
        else:
            self._end(self.store.fail, job, error)
            log.warning("Job %s failed: %s", job.id, error)

    def _end(self, verb: Callable[..., JobRecord], job: JobRecord, *args: object) -> None:
        """Call `verb`, a method of the store that ends the attempt, and release the job."""
        self.ending = True
        self._release(verb(job, self.owner, *args))

    def was_ended(self, job: JobRecord) -> bool:
        """Return whether the attempt has ended after this coordinator sent a verb to end it.

        So the coordinator detects the end of the attempt even if the response of Redis to the verb was lost. Returns
        True also if Redis lost the verb, but another coordinator ended the attempt.
        """
        return self.ending and job.attempt == self.attempt and job.state not in ACTIVE

    def _release(self, job: JobRecord) -> None:
        """Let the coordinator release a job whose attempt has ended, and count the end for Prometheus."""
        self.released, self.requeued = True, job.state is State.QUEUED
        counter = {State.QUEUED: REQUEUES, State.FAILED: FAILURES}.get(job.state)
        if counter is not None and job.error is not None:
            counter.labels(str(job.error["code"])).inc()

    def _read_again(self, job: JobRecord) -> JobRecord:
        """Return the current record, with the changes of this step and of workers since `job` was read.

        Raises StaleAttempt if another coordinator has adopted the job meanwhile.
        """
        current = self.store.get(job.tenant, job.id)
        if (current.owner, current.attempt) != (self.owner, job.attempt):
            raise StaleAttempt(f"This coordinator has lost the lease of job {job.id}. No action is needed.")
        return current

    def _next_attempt(self, job: JobRecord, *, requeues: bool) -> str:
        """Return a sentence about the next attempt, such as "Resumes from step 300 when a worker is free."."""
        situation = Situation.read(self.store, job)
        ready = [node for node in situation.ready() if node.place is Place.WORKERS]
        current = [node for node in ready if job.progress and node.name == job.progress.node]
        start = "from the last finished stage"
        for node in current or ready[:1]:
            checkpoints = self.store.checkpoints(job.tenant, situation.artifact_id(node))
            start = f"from step {checkpoints[-1].step:,}" if checkpoints else f"with stage '{node.name}'"
        if requeues:
            return f"Resumes {start} when a worker is free."
        return f"Retry the job to resume {start}."


def _delay(error: TLMError, failures: int, losses: int, hub_losses: int) -> float:
    """Return the seconds until the next attempt. failures, losses, hub_losses: the results of `JobRecord.spent`."""
    if is_hub_outage(error):  # Outages of the hub last longer, and each attempt sends requests to the hub.
        return min(600.0, 60.0 * 2.0 ** (failures + hub_losses - 1))
    return min(KEEPS_SLOT_SECONDS, 4.0 ** (failures + losses - 1))
