"""The coordinator: claims jobs, and drives them to their end with `HeldJob`.

In each round, the coordinator reads the state of each job: the record, the published artifacts, the retriever and the
cluster. Then it takes the next step. Every step may be repeated, and the memory of the coordinator can be rebuilt. So a
coordinator may be killed at any time, and another coordinator continues.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.background import Background
from services.common.job_reads import OBSTACLE_SECONDS
from services.common.jobstore import Claimable, JobStore
from services.common.logs import ids_in, log_context
from services.common.metrics import CLAIMS, HELD, IDLE, LEASE_LOSSES, ROUNDS, TOKENS
from services.trainer.cluster import RayCluster
from services.trainer.held_job import KEEPS_SLOT_SECONDS, HeldJob
from services.trainer.local_stages import LocalStages, LocalThreads
from services.trainer.selections import Selections
from services.trainer.settings import TrainerSettings
from services.trainer.submissions import RoundTimes, Submissions, report_waiting
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import (
    ClusterUnavailable,
    IllegalTransition,
    NotFound,
    Outage,
    StaleAttempt,
    StorageFull,
    StorageUnavailable,
    StoreFull,
    StoreUnavailable,
    TLMError,
    Unavailable,
    UnreadableRecord,
)
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State

log = logging.getLogger(__name__)

# Outage that may affect only this coordinator → why it starts no job. Another coordinator may continue its jobs.
_BLIND: Mapping[type[Outage], str] = {
    ClusterUnavailable: "The Ray cluster does not answer.",
    StorageUnavailable: "The storage does not answer.",
}


@dataclass
class Coordinator:
    """Claims jobs and drives them until it is stopped. owner: the name under which it holds leases."""

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
        self._held: dict[str, HeldJob] = {}
        # Tenant and id of requeued jobs. They keep their slots until they can be claimed again.
        self._backing_off: set[tuple[str, str]] = set()
        # TENANT/JOB → expiry of leases that nobody has renewed since the first round. Their owners may be dead while
        # the workers run. Such a job uses a slot until a coordinator renews the lease or adopts the job.
        self._unrenewed: dict[str, float] | None = None
        self._times = RoundTimes()  # of the current round
        # Start of the last round by the clocks of the store and of this machine. None after an outage of the store.
        self._clocks: tuple[float, float] | None = None
        self._stepped_at = time.monotonic()
        self._mute = False  # whether the last write of the heartbeat failed, so that its error is logged once
        # The outages for which this coordinator has released jobs. It claims no job to run until they are over.
        self._blind: set[type[Outage]] = set()
        self._probed: dict[type[Outage], bool] = {}  # outage → whether it is over, from its probe in this round
        self._full = ""  # message of the error about a full disk
        # Why no job starts although slots are free, and time of the last report of this reason.
        self._reported: tuple[str, float] = ("", -math.inf)
        self._stop = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Run rounds until `stop` is set. An error of a round ends no job, and the next round retries."""
        self._stop = stop
        renewing = self.leases.start(self._renew_leases, self.settings.lease_seconds / 3, stop)
        with self.task.running():
            while not stop.is_set():
                with self.task.round(), ROUNDS.time():
                    try:
                        self.round()
                    except Exception:  # Workers may have been unable to report, too.
                        self._clocks = None
                        raise
                self._show_step()
                HELD.set(len(self._held))
                IDLE.set(self.idle_jobs)
                TOKENS.set(sum(held.rate for held in self._held.values()))
                stop.wait(self.task.delay(self.settings.poll_seconds))
        renewing.join()
        self._release_leases()

    @property
    def idle_jobs(self) -> int:
        """The number of held jobs that wait for workers or for a component."""
        return sum(held.idle or held.waiting is not None for held in self._held.values())

    def _renew_leases(self) -> None:
        """Renew the leases of all held jobs. While a step hangs, renew none, so other coordinators adopt the jobs."""
        if time.monotonic() - self._stepped_at > self.settings.hang_seconds:
            log.error("A step takes longer than %g s, so the leases are not renewed.", self.settings.hang_seconds)
            for gauge in (HELD, IDLE, TOKENS):
                gauge.set(0)  # The leases expire, and the alerts on standing jobs must not wait for the step.
            return
        for held in list(self._held.values()):
            with self.leases.item(f"the lease of job {held.id}", **held.ids):
                self.store.renew(held.tenant, held.id, self.owner, self.settings.lease_seconds)

    def _release_leases(self) -> None:
        """End the leases, so that other coordinators adopt the jobs at once."""
        for held in list(self._held.values()):
            held.local.cancel_waiting()
            try:
                self.store.renew(held.tenant, held.id, self.owner, 0.0)
            except TLMError as error:
                with log_context(**held.ids):
                    log.warning("Cannot release the lease of job %s, so the lease expires: %s", held.id, error)

    def _show_step(self) -> None:
        """Record that this coordinator does not hang, for the thread of the leases and for health probes."""
        self._stepped_at = time.monotonic()
        try:
            self.settings.heartbeat.parent.mkdir(parents=True, exist_ok=True)
            self.settings.heartbeat.touch()
        except OSError as error:  # Jobs continue without a heartbeat.
            if not self._mute:
                log.warning("Cannot write the heartbeat file: %s. Free or mount the scratch folder.", error)
            self._mute = True
        else:
            self._mute = False

    def round(self) -> None:
        """Take the next step of every held job, then claim jobs while slots are free.

        Without a free slot, claim only jobs that are pausing or cancelling, to stop them. When the coordinator must
        stop, the round ends after the current step: each step may wait for Ray, and the process is soon killed.
        """
        self._show_step()
        self._read_clocks()
        self._probed.clear()
        for held in list(self._held.values()):
            with self.task.item(f"job {held.id}", **held.ids):
                self._step(held)
            if self._stop.is_set():
                return
        if self._unrenewed is None:  # the first round
            self._backing_off.update(self.store.delayed())
        self._backing_off = {job for job in self._backing_off if self._backs_off(*job)}
        self._unrenewed = self._still_unrenewed()
        self._blind = {outage for outage in self._blind if not self._is_over(outage)}
        self._claim_jobs()
        self._report_obstacle()

    def _read_clocks(self) -> None:
        """Set the times of the round. Extend the stall grace period if workers may have been unable to report.

        While this machine is suspended, its clock stops, and the store's clock continues. A long round alone does not
        extend the period.
        """
        now, here = self.store.now(), time.monotonic()
        before, here_before = self._clocks or (-math.inf, here)
        jump = now - before - (here - here_before)
        is_grace = now < before or jump > self.settings.stall_seconds / 2
        self._times = RoundTimes(now, now if is_grace else self._times.stall_grace_until)
        self._clocks = now, here

    def _claim_jobs(self) -> None:
        while ClusterUnavailable not in self._blind and not self._stop.is_set():
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

    def _hold(self, job: JobRecord, *, claimed_at: float | None) -> HeldJob:
        submissions = Submissions(self.store, self.cluster, self.settings, self.owner)
        new = HeldJob(
            job.tenant, job.id, self.store, self.artifacts, self.selections, submissions, LocalStages(self.local),
            claimed_at=claimed_at,
        )  # fmt: skip
        held = self._held.setdefault(job.id, new)
        held.attempt, held.request_id = job.attempt, job.request_id
        with log_context(**held.ids):
            log.info("Claimed job %s, attempt %d", job.id, job.attempt)
        return held

    def _report_obstacle(self) -> None:
        """Report why no job starts although slots are free. Repeat an equal report rarely: a write costs an fsync."""
        obstacle = next((reason for outage, reason in _BLIND.items() if outage in self._blind), self._full)
        last, reported_at = self._reported
        now = time.monotonic()
        if obstacle == last and now - reported_at < OBSTACLE_SECONDS / 3:
            return
        self._reported = obstacle, now
        try:
            self.store.report_obstacle(self.owner, obstacle)
        except StoreFull as error:  # The report is only for displays.
            log.warning("Cannot report that no job starts: %s", error)

    def _still_unrenewed(self) -> dict[str, float]:
        if self._unrenewed == {}:
            return {}
        leases = self.store.leases()
        before = leases if self._unrenewed is None else self._unrenewed
        return {member: expiry for member, expiry in before.items() if leases.get(member) == expiry}

    def _claimable(self) -> Claimable:
        """Return the value of `which` for `JobStore.claim`, so that at most `concurrency` jobs run."""
        room = self.settings.concurrency - len(self._held) - len(self._backing_off)
        if room <= 0 or self._blind:
            self._full = ""
            return "stopping"
        return "any" if room > len(self._unrenewed or ()) and self._has_space() else "leased"

    def _has_space(self) -> bool:
        """Return whether a new job may start. No job starts while a disk is almost full. Running jobs continue."""
        try:
            self.store.check_space()
            self.artifacts.check_space()
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
        # During a longer delay, such as in an outage of the hub, other jobs use the slot.
        now = self.store.now()
        return job.state is State.QUEUED and not job.is_due(now) and job.is_due(now + KEEPS_SLOT_SECONDS)

    def _step(self, held: HeldJob) -> None:
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

    def _step_once(self, held: HeldJob) -> None:
        job = self.store.get(held.tenant, held.id)
        if not held.was_ended(job):
            held.submissions.check_owner(job)
        try:
            error = held.advance(job, self._times)
        except Outage as outage:
            self._wait(job, held, outage)
            return
        if error is not None:
            held.end_attempt(job, error)
        if held.requeued:
            self._backing_off.add((job.tenant, job.id))
        if held.released:
            self._release(held)

    def _wait(self, job: JobRecord, held: HeldJob, error: Outage) -> None:
        """Report, once for each reason, that a job waits.

        Release the job if Ray or the storage does not answer for `hang_seconds`. The attempt does not end.
        """
        held.selecting.clear()  # A wait is no hang.
        if isinstance(error, StoreUnavailable | StoreFull):
            self._clocks = None
        now = self._times.now
        held.waiting_since = min(held.waiting_since, now)  # The clock may go back.
        if held.waiting != error.code:
            report_waiting(self.store, job, error)
            log.warning("Job %s waits: %s", job.id, error)
            held.waiting, held.waiting_since = error.code, now
        elif (
            type(error) in _BLIND
            and now - held.waiting_since > self.settings.hang_seconds
            and not self._is_over(type(error))
        ):
            log.warning("Released job %s: %s", job.id, error)
            self.store.renew(job.tenant, job.id, self.owner, 0.0)
            self._release(held)
            self._blind.add(type(error))

    def _is_over(self, outage: type[Outage]) -> bool:
        """Return whether Ray (ClusterUnavailable) or the storage (StorageUnavailable) answers. Probe once per round."""
        if outage not in self._probed:
            self._show_step()  # The call before the probe may have taken long.
            probed = self.cluster if outage is ClusterUnavailable else self.artifacts
            self._probed[outage] = probed.answers()
            self._show_step()
        return self._probed[outage]

    def _release(self, held: HeldJob) -> None:
        """Stop driving a job."""
        held.local.cancel_waiting()
        self._held.pop(held.id, None)
