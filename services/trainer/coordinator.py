"""The coordinator: drives claimed jobs to their end.

In each round, it reads the state of each job (the record, the published artifacts, the retriever, the cluster). Then it
takes the next step. Its own memory can be rebuilt, and every step may be repeated. So a coordinator may be killed at
any time, and another coordinator continues.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

from services.common.background import Background
from services.common.job_reads import OBSTACLE_SECONDS
from services.common.jobstore import Claimable, JobStore
from services.common.logs import ids_in, log_context
from services.common.metrics import CLAIMS, FAILURES, FIRST_STEP, HELD, LEASE_LOSSES, REQUEUES, ROUNDS, STAGES, TOKENS
from services.common.progress import progress_of
from services.common.situation import Situation
from services.trainer.cluster import RayCluster
from services.trainer.local_stages import LocalStages, LocalThreads
from services.trainer.selections import Selections
from services.trainer.settings import TrainerSettings
from services.trainer.submissions import AttemptEnded, Submissions, report_waiting
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import (
    ClusterUnavailable,
    CorruptArtifact,
    IllegalTransition,
    NotFound,
    Outage,
    RuntimeExceeded,
    StaleAttempt,
    StorageFull,
    StorageUnavailable,
    StoreFull,
    StoreUnavailable,
    TLMError,
    TrainingFailed,
    Unavailable,
    UnreadableRecord,
    WorkerLost,
)
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.training.stage import DROPPED, Place

log = logging.getLogger(__name__)

# Outage that may concern this coordinator alone → why it starts no job. Another coordinator may continue its jobs.
_BLIND: Mapping[type[Outage], str] = {
    ClusterUnavailable: "The Ray cluster does not answer.",
    StorageUnavailable: "The storage does not answer.",
}


@dataclass
class _Held:
    """A job that this coordinator drives. A restarted coordinator can rebuild every field.

    verified: artifacts whose files have been checked.
    selecting: artifact id → unit and count of its selection's progress, and when it last changed. waiting: code of the
    error that makes the job wait. claimed_at: when a new attempt was claimed; None after its first step, and for an
    adopted attempt. began: node → when a round first saw its progress. rate: tokens per second of all groups.
    """

    tenant: str
    id: str
    submissions: Submissions
    local: LocalStages
    verified: set[ManifestRef] = field(default_factory=set)
    selecting: dict[str, tuple[tuple[str, int], float]] = field(default_factory=dict)
    waiting: str | None = None
    waiting_since: float = 0.0
    stopping_since: float | None = None
    claimed_at: float | None = None
    began: dict[str, float] = field(default_factory=dict)
    rate: float = 0.0
    attempt: int = 0
    request_id: str = ""

    @property
    def ids(self) -> dict[str, object]:
        """The fields of log lines about the job."""
        return {"job_id": self.id, "attempt": self.attempt, "request_id": self.request_id}

    def measure(self, situation: Situation) -> None:
        """Measure the speed, and how long stages take, for Prometheus."""
        job, done, ready, now = situation.job, situation.done, situation.ready(), time.monotonic()
        working = {node.group for node in ready if node.place is Place.WORKERS and job.works(node.group)}
        self.rate = sum(job.beats[group].rate for group in working)
        for node in ready:
            # Until the workers of this attempt work, the progress of their stage is of an earlier attempt.
            waits = node.place is Place.WORKERS and node.group not in working
            if not job.progress or node.name != job.progress.node or waits:
                continue
            self.began.setdefault(node.name, now)
            if self.claimed_at is not None and job.progress.step and node.place is Place.WORKERS:
                FIRST_STEP.observe(now - self.claimed_at)
                self.claimed_at = None
        for name in self.began.keys() & done.keys():
            STAGES.labels(situation.plan.node(name).stage.name).observe(now - self.began.pop(name))


@dataclass
class Coordinator:
    """Claims jobs and drives them until it is stopped.

    owner: the name under which it holds leases.
    """

    store: JobStore
    artifacts: ArtifactStore
    selections: Selections
    cluster: RayCluster
    settings: TrainerSettings
    owner: str
    local: LocalThreads
    task: Background = field(default_factory=lambda: Background("rounds"))
    leases: Background = field(default_factory=lambda: Background("leases"))

    def __post_init__(self) -> None:
        self._held: dict[str, _Held] = {}
        # Tenant and id of requeued jobs. They keep their slots until they can be claimed again.
        self._backing_off: set[tuple[str, str]] = set()
        # TENANT/JOB → expiry of leases that nobody has renewed since the first round. Their owners may be dead, but
        # the workers run. The jobs count as held until another coordinator renews the lease or this one adopts the job.
        self._unrenewed: dict[str, float] | None = None
        # Start of the current round by the store's clock, and end of the stall grace period. In this period, workers
        # may have been unable to report, because the store did not answer or this machine was suspended.
        self._now = self._stall_grace_until = -math.inf
        # Start of the last round by the clocks of the store and this machine; None if the store did not answer since.
        self._clocks: tuple[float, float] | None = None
        self._stepped_at = time.monotonic()
        # Why this coordinator has released its jobs. It claims no job to run until it reaches Ray and storage again.
        self._blind: set[type[Outage]] = set()
        self._probed: dict[type[Outage], bool] = {}  # outage → whether it is over, from its probe in this round
        self._full = ""  # the message of the error of a full disk
        # Why no job starts although slots are free, and when this was reported.
        self._reported: tuple[str, float] = ("", -math.inf)

    def run(self, stop: threading.Event) -> None:
        """Run rounds until `stop` is set. An error of a round ends no job; the next round retries."""
        renewing = self.leases.start(self._renew_leases, self.settings.lease_seconds / 3, stop)
        with self.task.running():
            while not stop.is_set():
                with self.task.round(), ROUNDS.time():
                    self._round_or_forget_time()
                self._show_step()
                HELD.set(len(self._held))
                TOKENS.set(sum(held.rate for held in self._held.values()))
                stop.wait(self.task.delay(self.settings.poll_seconds))
        renewing.join()
        self._release_leases()

    def _renew_leases(self) -> None:
        """Renew the leases, also while a round waits. If a step hangs, let other coordinators adopt the jobs."""
        if time.monotonic() - self._stepped_at > self.settings.hang_seconds:
            log.error("A step takes longer than %g s, so the leases are not renewed.", self.settings.hang_seconds)
            return
        for held in list(self._held.values()):
            with self.leases.item(f"the lease of job {held.id}", **held.ids):
                self.store.renew(held.tenant, held.id, self.owner, self.settings.lease_seconds)

    def _release_leases(self) -> None:
        """Let other coordinators adopt the jobs now. Without this, they wait until the leases expire."""
        for held in list(self._held.values()):
            held.local.cancel_waiting()
            try:
                self.store.renew(held.tenant, held.id, self.owner, 0.0)
            except TLMError as error:
                with log_context(**held.ids):
                    log.warning("Cannot give up the lease of job %s; it expires: %s", held.id, error)

    def _show_step(self) -> None:
        """Show that this coordinator does not hang: to the thread of the leases, and in a file to health checks."""
        self._stepped_at = time.monotonic()
        try:
            self.settings.heartbeat.parent.mkdir(parents=True, exist_ok=True)
            self.settings.heartbeat.touch()
        except OSError as error:  # A missing heartbeat ends no job.
            log.warning("Cannot write the heartbeat file: %s", error)

    def _round_or_forget_time(self) -> None:
        try:
            self.round()
        except Exception:  # Workers may have been unable to report, too.
            self._clocks = None
            raise

    def round(self) -> None:
        """Take the next step of every held job, then claim jobs while there is room.

        Without room, it claims only jobs that are pausing or cancelling, to stop them.
        """
        self._show_step()
        self._read_clocks()
        self._probed.clear()
        for held in list(self._held.values()):
            with self.task.item(f"job {held.id}", **held.ids):
                self._step(held)
        if self._unrenewed is None:  # the first round
            self._backing_off.update(self.store.delayed())
        self._backing_off = {job for job in self._backing_off if self._backs_off(*job)}
        self._unrenewed = self._still_unrenewed()
        self._blind = {outage for outage in self._blind if not self._is_over(outage)}
        self._claim_jobs()
        self._report_obstacle()

    def _read_clocks(self) -> None:
        """Start a round. Extend the stall grace period if workers may have been unable to report since the last round.

        While this machine is suspended, its clock stops, and the store's clock continues. A long round alone does not
        extend the period.
        """
        self._now, here = self.store.now(), time.monotonic()
        before, here_before = self._clocks or (-math.inf, here)
        jump = self._now - before - (here - here_before)
        if self._now < before or jump > self.settings.stall_seconds / 2:
            self._stall_grace_until = self._now
        self._clocks = self._now, here

    def _claim_jobs(self) -> None:
        while ClusterUnavailable not in self._blind:
            try:
                job = self.store.claim(self.owner, self.settings.lease_seconds, self._claimable())
            except UnreadableRecord as error:  # Its lease expires, and a coordinator of another release claims it.
                with log_context(**ids_in(error.message)):
                    log.error("Cannot read the claimed job: %s", error)
                return
            if job is None:
                return
            if self._unrenewed:
                self._unrenewed.pop(f"{job.tenant}/{job.id}", None)
            adopted = job.updated_at != job.running_since
            CLAIMS.labels(str(adopted).lower()).inc()
            self._step(self._hold(job, claimed_at=None if adopted else time.monotonic()))

    def _hold(self, job: JobRecord, *, claimed_at: float | None) -> _Held:
        submissions = Submissions(self.store, self.cluster, self.settings, self.owner)
        new = _Held(job.tenant, job.id, submissions, LocalStages(self.local), claimed_at=claimed_at)
        held = self._held.setdefault(job.id, new)
        held.attempt, held.request_id = job.attempt, job.request_id
        with log_context(**held.ids):
            log.info("Claimed job %s, attempt %d", job.id, job.attempt)
        return held

    def _report_obstacle(self) -> None:
        """Report why no job starts although slots are free. Each write costs an fsync, so equal reports are rare."""
        obstacle = next((reason for outage, reason in _BLIND.items() if outage in self._blind), self._full)
        last, reported_at = self._reported
        now = time.monotonic()
        if obstacle == last and now - reported_at < OBSTACLE_SECONDS / 3:
            return
        self._reported = obstacle, now
        try:
            self.store.report_obstacle(self.owner, obstacle)
        except StoreFull as error:  # Only displays need the report.
            log.warning("Cannot report that no job starts: %s", error)

    def _still_unrenewed(self) -> dict[str, float]:
        if self._unrenewed == {}:
            return {}
        leases = self.store.leases()
        before = leases if self._unrenewed is None else self._unrenewed
        return {member: expiry for member, expiry in before.items() if leases.get(member) == expiry}

    def _claimable(self) -> Claimable:
        """Return which jobs may be claimed, so that at most `concurrency` jobs run."""
        room = self.settings.concurrency - len(self._held) - len(self._backing_off)
        if room <= 0 or self._blind:
            self._full = ""
            return "stopping"
        return "any" if room > len(self._unrenewed or ()) and self._has_space() else "leased"

    def _has_space(self) -> bool:
        """Return whether a new job may start. No job starts while a disk is almost full. Running jobs continue."""
        try:
            self.store.check_space()
            self.artifacts.check_space_if_mounted()
        except (StoreFull, StorageFull) as error:
            if not self._full:
                log.error("No new job starts: %s", error)
            self._full = error.message
            return False
        self._full = ""
        return True

    def _backs_off(self, tenant: str, job_id: str) -> bool:
        try:
            job = self.store.get(tenant, job_id)
        except (NotFound, UnreadableRecord):
            return False
        return job.state is State.QUEUED and not job.is_due(self.store.now())

    def _step(self, held: _Held) -> None:
        """Renew the lease of a job and take its next step. Raises Unavailable if the store does not answer."""
        self._show_step()
        with log_context(**held.ids):
            try:
                self._step_once(held)
            except Unavailable:
                raise
            except IllegalTransition as error:
                log.info("Job %s was paused or cancelled during this step: %s", held.id, error)
            except TLMError as error:
                # Another coordinator holds the job, it was deleted, or another release has written its record.
                log.warning("Released job %s: %s", held.id, error)
                if isinstance(error, StaleAttempt):
                    LEASE_LOSSES.inc()
                self._release(held)

    def _step_once(self, held: _Held) -> None:
        job = self.store.get(held.tenant, held.id)
        held.submissions.check_owner(job)
        error = self._advance(job, held)
        if error is not None:
            self._end_attempt(job, held, error)

    def _advance(self, job: JobRecord, held: _Held) -> TLMError | None:
        """Take the next step of a job. Returns the error that ends the attempt, or None.

        If a component does not answer, the job waits. Raises IllegalTransition or StaleAttempt if the job has changed
        in the store since it was read.
        """
        try:
            match job.state:
                case State.RUNNING:
                    self._drive(job, held)
                case State.PAUSING:
                    self._pause(job, held)
                case State.CANCELLING:
                    self._cancel(job, held)
                case _:
                    self._release(held)
        except (IllegalTransition, StaleAttempt):
            raise
        except AttemptEnded as ended:
            return ended.error
        except Outage as error:
            self._wait(job, held, error)
            return None
        except TLMError as error:
            return error
        except Exception as error:  # A bug that one job reveals must not end the coordinator and its other jobs.
            log.exception("Internal error in job %s", job.id)
            return TrainingFailed(f"Internal error: {type(error).__name__}: {error}. See the log of the trainer.")
        held.waiting = None
        return None

    # --- running ------------------------------------------------------------------------------------------------

    def _drive(self, job: JobRecord, held: _Held) -> None:
        """Start or check everything that can run now. Finish the job when all its nodes are done."""
        self._check_runtime(job, held)
        situation = self._verified_situation(job, held)
        plan, done = situation.plan, situation.done
        held.measure(situation)
        if self._give_up_hung_stages(held):
            minutes = f"{self.settings.local_seconds / 60:.0f} minutes"
            raise AttemptEnded(
                WorkerLost(f"A stage in the coordinator ran for {minutes}. Check whether the storage hangs.")
            )
        self._drop_copies(situation, held)
        if len(done) == len(plan.nodes):  # The last node alone does not suffice: it does not need all the others.
            self._finish(situation, held)
            return
        groups: set[str] = set()
        for node in situation.ready():
            match node.place:
                case Place.COORDINATOR:
                    self._run_here(situation, held, node)
                case Place.RETRIEVER:
                    self._select(situation, held, node)
                case Place.WORKERS:
                    groups.add(node.group)
        for group in sorted(groups):
            if plan.startable(group, done):
                held.submissions.advance(situation, group, now=self._now, stall_grace_until=self._stall_grace_until)

    def _check_runtime(self, job: JobRecord, held: _Held) -> None:
        """Stop the workers and end the attempt if the job has run longer than its submitter allows."""
        limit = job.spec.max_runtime_seconds
        runtime = job.ran_seconds  # The renewals of the lease count this time.
        if limit is None or runtime < limit:
            return
        held.submissions.stop(job, running=True)
        raise AttemptEnded(
            RuntimeExceeded(
                f"The job ran for {runtime:.0f} s. Its limit max_runtime_seconds is {limit:g}. Clone the job with a "
                "higher limit. The clone continues from the last checkpoint."
            )
        )

    def _verified_situation(self, job: JobRecord, held: _Held) -> Situation:
        """Read the situation and check each artifact once. Invalidates an artifact whose files are lost or damaged."""
        situation = Situation.read(self.store, job)
        for name, ref in situation.done.items():
            if ref in held.verified:
                continue
            try:
                self.artifacts.check(ref)
            except (NotFound, CorruptArtifact) as error:
                situation.invalidate(self.store, situation.plan.node(name), error)
                return self._verified_situation(job, held)
            held.verified.add(ref)
        return situation

    def _run_here(self, situation: Situation, held: _Held, node: Node) -> None:
        """Start a stage in a thread of this process, or publish its output once it has ended."""
        artifact = situation.artifact_id(node)
        if artifact not in held.local.runs:
            self._report_progress(situation, node)
            inputs = {name: situation.done[source] for name, source in node.inputs.items()}
            held.local.start(situation.job, node, artifact, inputs)
            return
        try:
            ref = held.local.output(artifact)
        except (NotFound, CorruptArtifact) as error:
            self._fail_stage(situation, node, error)
        if ref is None:
            return
        published = situation.publish(self.store, node, ref)
        held.local.forget(artifact)
        if published != ref:
            self.artifacts.delete(ref.folder)

    def _give_up_hung_stages(self, held: _Held) -> bool:
        """Give up the stages of a job that hang in this process. Return whether there are any."""
        hung = held.local.give_up_hung(self.settings.local_seconds)
        if hung:
            log.error("Stages of job %s hang in this process. The coordinator starts new threads.", held.id)
        return hung

    def _drop_copies(self, situation: Situation, held: _Held) -> None:
        """Forget stages of this process that another job has published first, and delete their output."""
        awaited = {situation.artifact_id(node) for node in situation.ready()}
        for ref in held.local.forget_ended(awaited):
            if ref not in situation.done.values():
                self.artifacts.delete(ref.folder)

    def _select(self, situation: Situation, held: _Held, node: Node) -> None:
        """Request the selection from the retriever, or publish it once it is ready."""
        job, artifact = situation.job, situation.artifact_id(node)
        task = situation.done[node.inputs["task"]]
        if DROPPED in self.artifacts.manifest(task).meta:
            situation.publish(self.store, node, task)
            return
        check_owner = partial(held.submissions.check_owner, job)
        run = self.selections.request(job, node, artifact, task=task, check_owner=check_owner)
        if run.ref is not None:
            situation.publish(self.store, node, run.ref)
        elif run.state == "failed":
            check_owner()
            self.selections.stop(job, artifact)  # The retriever forgets the failure, so the next attempt retries.
            unknown = TLMError("The retriever failed without a reason. Read its log.")
            self._fail_stage(situation, node, run.failure or unknown)
        else:
            if run.total:  # The selection does not wait for other selections or for its index.
                self._check_selection(held, artifact, (run.unit, run.done))
            self._report_progress(situation, node, step=run.done, total=run.total, unit=run.unit, rate=run.rate)

    def _check_selection(self, held: _Held, artifact: str, progress: tuple[str, int]) -> None:
        """Raise AttemptEnded if a selection hangs. The retriever reports a hanging selection as running."""
        before, since = held.selecting.get(artifact, (progress, self._now))
        since = min(since, self._now) if before == progress else self._now  # The clock may go back.
        held.selecting[artifact] = progress, since
        idle = self._now - max(since, self._stall_grace_until)
        if idle > self.settings.selection_seconds:
            message = f"The selection made no progress for {idle:.0f} s. The coordinator stopped it."
            raise AttemptEnded(WorkerLost(f"{message} Read the retriever's log."))

    def _fail_stage(self, situation: Situation, node: Node, error: TLMError) -> NoReturn:
        """Raise AttemptEnded with a stage's error. Invalidate lost or damaged inputs, whose error has precedence."""
        if isinstance(error, NotFound | CorruptArtifact):
            for source in set(node.inputs.values()):
                try:
                    self.artifacts.verify(situation.done[source])
                except (NotFound, CorruptArtifact) as damage:
                    error = situation.invalidate(self.store, situation.plan.node(source), damage)
        raise AttemptEnded(error)

    def _finish(self, situation: Situation, held: _Held) -> None:
        job, plan, done = situation.job, situation.plan, situation.done
        artifacts = {
            node.name: {"artifact": situation.artifact_id(node), "ref": done[node.name].model_dump()}
            for node in plan.nodes
        }
        summary = self.artifacts.manifest(done[plan.report]).meta
        self.store.finish(job, self.owner, {"artifacts": artifacts, "summary": summary})
        self._release(held)
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

    def _wait(self, job: JobRecord, held: _Held, error: Outage) -> None:
        """Report, once for each reason, that a job waits.

        Give the job up if Ray or the storage does not answer for `hang_seconds`. The job keeps its attempt.
        """
        held.selecting.clear()  # A wait is no hang.
        if isinstance(error, StoreUnavailable | StoreFull):
            self._clocks = None
        if held.waiting != error.code:
            held.waiting = error.code
            held.waiting_since = self._now
            log.warning("Job %s waits: %s", job.id, error)
            report_waiting(self.store, job, error)

        elif (
            type(error) in _BLIND
            and self._now - held.waiting_since > self.settings.hang_seconds
            and not self._is_over(type(error))
        ):
            log.warning("Giving up job %s: %s", job.id, error)
            self.store.renew(job.tenant, job.id, self.owner, 0.0)
            self._release(held)
            self._blind.add(type(error))

    def _is_over(self, outage: type[Outage]) -> bool:
        """Return whether Ray or the storage can be reached again. Probes once per round, because a probe may hang."""
        if outage not in self._probed:
            self._show_step()  # The call before the probe may have taken long, too.
            probed = self.cluster if outage is ClusterUnavailable else self.artifacts
            self._probed[outage] = probed.answers()
            self._show_step()
        return self._probed[outage]

    # --- ending -------------------------------------------------------------------------------------------------

    def _release(self, held: _Held) -> None:
        """Stop driving a job."""
        held.local.cancel_waiting()
        self._held.pop(held.id, None)

    def _pause(self, job: JobRecord, held: _Held) -> None:
        """Confirm the pause once the workers have exited. They first have `pause_seconds` to write a checkpoint."""
        if self._has_stopped(job, held, grace=self.settings.pause_seconds):
            self.store.confirm_paused(job, self.owner)
            self._release(held)

    def _cancel(self, job: JobRecord, held: _Held) -> None:
        if self._has_stopped(job, held, grace=0.0):
            self.store.confirm_cancelled(job, self.owner)
            self._release(held)

    def _has_stopped(self, job: JobRecord, held: _Held, *, grace: float) -> bool:
        """Stop the submissions, local stages and selections of an attempt. Returns whether all have stopped.

        A submission with running workers first gets `grace` seconds. A submission that waits stops at once.
        """
        held.stopping_since = min(held.stopping_since or self._now, self._now)  # The clock may go back.
        workers_stopped = held.submissions.stop(job, running=self._now - held.stopping_since >= grace)
        held.local.cancel_waiting()
        self._give_up_hung_stages(held)
        selections_stopped = self._stop_selections(job, held)
        return selections_stopped and workers_stopped and held.local.have_ended

    def _stop_selections(self, job: JobRecord, held: _Held) -> bool:
        """Stop the selections that the job waits for. Returns whether none of them runs."""
        situation = Situation.read(self.store, job)
        artifacts = [situation.artifact_id(node) for node in situation.ready() if node.place is Place.RETRIEVER]
        if artifacts:
            held.submissions.check_owner(job)
        stopped = [self.selections.stop(job, artifact) for artifact in artifacts]
        return all(stopped)

    def _end_attempt(self, job: JobRecord, held: _Held, error: TLMError) -> None:
        """Requeue a running job if the error is retryable and attempts are left. Else pause, cancel or fail the job."""
        if isinstance(error, StorageFull):  # It is no fault of the job. The next attempt waits for free space.
            error = StorageUnavailable(error.message)
        # Workers and selections that still run cannot publish, but use the room of the next attempt.
        for name, stop in (
            ("selections", lambda: self._stop_selections(job, held)),
            ("workers", lambda: self._stop_workers(job, held)),
        ):
            try:
                stop()
            except Exception as failure:  # The attempt ends anyway.
                log.warning("Cannot stop the %s of job %s: %s", name, job.id, failure)
        failures, losses = job.spent(is_loss=error.is_loss)
        requeues = error.retryable and failures < job.spec.max_attempts and job.state is State.RUNNING
        if isinstance(error, WorkerLost) and job.state is State.RUNNING:
            error = error.followed_by(self._next_attempt(job, requeues=requeues))
        self.store.report(job.tenant, job.id, job.attempt, logs=[f"error {__name__}: {error.message}"])
        if job.state is State.CANCELLING:
            self.store.confirm_cancelled(job, self.owner)
        elif job.state is State.PAUSING and error.retryable:
            self.store.confirm_paused(job, self.owner)
        elif requeues:
            self.store.requeue(job, self.owner, error, delay_seconds=min(60.0, 4.0 ** (failures + losses - 1)))
            self._backing_off.add((job.tenant, job.id))
            REQUEUES.labels(error.code).inc()
            log.warning("Requeued job %s after attempt %d: %s", job.id, job.attempt, error)
        else:
            self.store.fail(job, self.owner, error)
            FAILURES.labels(error.code).inc()
            log.warning("Job %s failed: %s", job.id, error)
        self._release(held)

    def _stop_workers(self, job: JobRecord, held: _Held) -> None:
        current = self.store.get(job.tenant, job.id)  # This step may have submitted another group.
        if (current.owner, current.attempt) == (self.owner, job.attempt):
            held.submissions.stop(current, running=True)

    def _next_attempt(self, job: JobRecord, *, requeues: bool) -> str:
        """Return a sentence that says where the next attempt after a lost worker starts, and when."""
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
