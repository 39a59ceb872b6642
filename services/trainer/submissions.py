"""The submissions of an attempt: how the coordinator starts, watches, and stops workers on the cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.jobstore import JobStore
from services.common.situation import Situation
from services.trainer.assignment import Assignment
from services.trainer.cluster import PROGRAM, RayCluster, Status
from services.trainer.settings import TrainerSettings
from tlm_core.errors import ClusterUnavailable, StaleAttempt, TLMError, WorkerLost, error_from_dict
from tlm_core.jobs.spec import Beat, Event, JobRecord
from tlm_core.wording import counted


class AttemptEnded(Exception):
    """Ends an attempt with `error`, even if `error` is an Outage. An Outage alone only makes the job wait."""

    def __init__(self, error: TLMError) -> None:
        super().__init__(error.message)
        self.error = error


class RoundTimes(NamedTuple):
    """Times of a round of the coordinator, by the clock of the store.

    now: start of the round. stall_grace_until: end of the stall grace period, in which workers may have been unable to
    report.
    """

    now: float = -math.inf
    stall_grace_until: float = -math.inf


@dataclass
class Submissions:
    """The submissions of one job, by group. The job's record stores their ids, so a new instance can continue them."""

    store: JobStore
    cluster: RayCluster
    settings: TrainerSettings
    owner: str
    # Submissions that this coordinator sent and that Ray has not confirmed.
    unconfirmed: set[str] = field(default_factory=set)
    # Submission → time of the first check that saw none of its workers; infinite after this was reported.
    unstarted_since: dict[str, float] = field(default_factory=dict)
    # Submission → time of the last check whether the head has lost it.
    waiting_checked: dict[str, float] = field(default_factory=dict)
    # Submission that runs → its last beat, and time of the first check that saw this beat.
    looks: dict[str, tuple[Beat | None, float]] = field(default_factory=dict)

    def advance(self, situation: Situation, group: str, times: RoundTimes) -> None:
        """Submit a group of the attempt, or check that its workers run and report.

        Raises AttemptEnded if the workers hang or ended without a result, StaleAttempt if another coordinator has
        adopted the job, and Unavailable if the cluster or the store does not answer.
        """
        job = situation.job
        submission = job.submissions.get(group)
        if submission is None:
            self._start(job, self._assignment(situation, group))
            return
        if submission in self.unconfirmed:
            self._confirm(job, group, submission)
            return
        status, assignment = self.cluster.status(submission), self._assignment(situation, group)
        if status is Status.UNKNOWN and not self._was_confirmed(job, group, submission):
            self._confirm(job, group, submission)
            return
        if status is Status.WAITING or (status is Status.RUNNING and assignment.distributed):
            self._report_late_workers(job, assignment, status, times.now)
        if status is Status.WAITING:
            self._check_waiting(job, submission, times.now)
        if status is Status.RUNNING:
            self._check_beat(job, group, *times)
        elif status is not Status.WAITING:
            self._check_result(job, group)

    def stop(self, job: JobRecord, *, running: bool) -> bool:
        """Stop the waiting submissions and, with `running`, the running ones. Return False if any was running.

        A waiting submission that starts nevertheless exits at once, because its attempt has ended.
        """
        statuses = {submission: self.cluster.status(submission) for submission in job.submissions.values()}
        for submission, status in statuses.items():
            if status is Status.WAITING or (running and status is Status.RUNNING):
                self._stop(job, submission)
        return Status.RUNNING not in statuses.values()

    def _stop(self, job: JobRecord, submission: str) -> None:
        self.check_owner(job)
        self.cluster.stop(submission)

    def check_owner(self, job: JobRecord) -> None:
        """Renew the lease. Raises StaleAttempt if another coordinator has adopted the job meanwhile."""
        if not self.store.renew(job.tenant, job.id, self.owner, self.settings.lease_seconds):
            raise StaleAttempt(f"This coordinator has lost the lease of job {job.id}. No action is needed.")

    def _start(self, job: JobRecord, assignment: Assignment) -> None:
        # Record the submission before it starts. Without the record, another owner could run the group twice.
        group = assignment.group
        submission = f"{job.id}.{group}.{job.attempt}"
        self.cluster.status(submission)  # Raises Unavailable before anything is written.
        self._check_gpus()
        self.check_owner(job)
        self.store.report(job.tenant, job.id, job.attempt, submissions={group: submission})
        self.unconfirmed.add(submission)
        command = [self.settings.python, "-m", PROGRAM, *assignment.arguments()]
        try:
            self.cluster.submit(submission, command, cpus=0.0 if assignment.distributed else assignment.cpus)
        finally:
            # After an error too: Ray may have accepted the submission. In contrast, the job server of a new Ray head
            # answers before it accepts jobs.
            self._confirm(job, group, submission)

    def _confirm(self, job: JobRecord, group: str, submission: str) -> None:
        """Report that Ray has accepted a submission. If not, delete the recorded id, so that a later round retries.

        Ray refuses the second of two equal ids. So the group runs once, even if Ray accepts the first request later.
        """
        if self.cluster.status(submission) is Status.UNKNOWN:
            self.store.report(job.tenant, job.id, job.attempt, submissions={group: None})
        else:
            event = ("workers.submitted", {"group": group, "submission": submission})
            self.store.report(job.tenant, job.id, job.attempt, events=[event])
        self.unconfirmed.discard(submission)

    def _was_confirmed(self, job: JobRecord, group: str, submission: str) -> bool:
        """Return whether Ray has accepted a submission that an earlier owner of the job may have sent."""
        events = (event for event in self._last_events(job) if event.type == "workers.submitted")
        return group in job.beats or any(event.data["submission"] == submission for event in events)

    def _last_events(self, job: JobRecord) -> list[Event]:
        """Return the events of the attempt among the last 50 events of the job."""
        events = self.store.events(job.tenant, job.id, after=max(0, job.last_event - 50))
        return [event for event in events if event.attempt == job.attempt]

    def _check_gpus(self) -> None:
        """Raise ClusterUnavailable if the workers would leave the cluster's GPUs unused. The job waits meanwhile."""
        if not self.settings.worker_gpus and (gpus := self.cluster.gpus()):
            raise ClusterUnavailable(
                f"The Ray cluster has {counted(gpus, 'GPU')}, but TLM_TRAINER_WORKER_GPUS is 0. Set it to 1 for the "
                "trainer and for Ray, or start Ray with --num-gpus=0 to train on CPUs."
            )

    def _check_beat(self, job: JobRecord, group: str, now: float, stall_grace_until: float) -> None:
        """Stop workers that are silent or make no progress for too long, and raise AttemptEnded.

        Until the workers work, the limit for silence is longer, because they first import libraries and connect. While
        workers lack room, their submission reports. So silence means that the workers have room but do not start.
        """
        settings, submission, beat = self.settings, job.submissions[group], job.beats.get(group)
        last, looked = self.looks.get(submission, (beat, now))
        looked = looked if beat == last else now
        self.looks[submission] = beat, looked
        since = looked if beat is None else beat.at
        if looked > now:  # The clock has gone back, so only the stall grace period counts.
            since = -math.inf
        silent = now - max(since, stall_grace_until)
        if not job.works(group) and silent > settings.first_report_seconds:
            reason = f"did not start within {silent:.0f} s, although Ray had free resources for it"
        elif job.works(group) and silent > settings.stall_seconds:
            reason = f"sent no heartbeat for {silent:.0f} s"
        elif beat is not None and job.works(group) and beat.idle > beat.limit:
            reason = f"made no progress for {beat.idle:.0f} s (limit {beat.limit:.0f} s)"
        else:
            return
        self._stop(job, submission)
        raise AttemptEnded(WorkerLost(f"Worker {reason}. The coordinator stopped it."))

    def _check_waiting(self, job: JobRecord, submission: str, now: float) -> None:
        """Raise AttemptEnded if a restart of the head has lost the submission. Checks every `start_seconds`."""
        if abs(now - self.waiting_checked.setdefault(submission, now)) < self.settings.start_seconds:
            return
        self.waiting_checked[submission] = now
        if self.cluster.is_lost(submission):
            self.check_owner(job)
            self.cluster.release(submission)
            raise AttemptEnded(WorkerLost("The head of the Ray cluster restarted before the workers started."))

    def _check_result(self, job: JobRecord, group: str) -> None:
        """Raise AttemptEnded if the ended workers of a group left a stage undone."""
        job = self.store.get(job.tenant, job.id)  # The workers may have changed the record since it was read.
        if not Situation.read(self.store, job).is_done(group):
            raise AttemptEnded(self._cause(job, job.submissions[group]))

    def _report_late_workers(self, job: JobRecord, assignment: Assignment, status: Status, now: float) -> None:
        """Report, once, that workers have not started for `start_seconds`. The usual cause is a cluster without room.

        A single worker is the submission itself. Workers of Ray Train start after their submission.
        """
        submission, settings = job.submissions[assignment.group], self.settings
        if now - self.unstarted_since.setdefault(submission, now) < settings.start_seconds:
            return
        self.unstarted_since[submission] = math.inf
        if status is Status.WAITING or not job.works(assignment.group):
            room = counted(assignment.cpus, "CPU")
            room += f" and {counted(assignment.gpus, 'GPU')}" if assignment.gpus else ""
            error = ClusterUnavailable(
                f"{counted(assignment.workers, 'worker')} did not start within {settings.start_seconds:g} s. Each "
                f"worker needs {room}. The Ray cluster is slow or has no room. The workers start when other jobs end "
                "or when you add machines to the Ray cluster."
            )
            report_waiting(self.store, job, error)

    def _assignment(self, situation: Situation, group: str) -> Assignment:
        """Return the assignment of a group. A group that needs no torch has one worker without a GPU."""
        job, settings = situation.job, self.settings
        least, most, gpus = job.spec.workers, job.spec.max_workers or job.spec.workers, settings.worker_gpus
        if not any(node.stage.needs_torch for node in situation.plan.group(group)):
            least, most, gpus = 1, 1, 0.0
        cpus = settings.cpus_per_worker(most, 1 if gpus else situation.plan.side_by_side(group))
        return Assignment(job.tenant, job.id, job.attempt, group, least, most, cpus, gpus, job.request_id)

    def _cause(self, job: JobRecord, submission: str) -> TLMError:
        """Return the error that the workers reported, else an error that states how the submission ended.

        Of several reported errors, a fault of the job comes first, then an outage, then a lost worker. Reason: after
        one worker has failed, the other workers report that they lost the connection.
        """
        reported = [event for event in self._last_events(job) if event.type == "attempt.error"]
        errors = [error_from_dict(event.data) for event in reversed(reported)]
        if errors:
            return min(errors, key=lambda error: (error.is_loss, isinstance(error, WorkerLost)))
        return self.cluster.ending(submission)


def report_waiting(store: JobStore, job: JobRecord, error: TLMError) -> None:
    """Append an event with the error for which the job waits."""
    store.report(job.tenant, job.id, job.attempt, events=[("job.waiting", error.as_dict())])
