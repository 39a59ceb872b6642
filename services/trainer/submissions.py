"""Submissions to the cluster, each of which computes a group of a job's plan."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from services.common.artifacts_of import published
from services.common.jobstore import JobStore
from services.trainer.assignment import Assignment
from services.trainer.cluster import Cluster, Status
from services.trainer.settings import TrainerSettings
from tlm_core.errors import ClusterUnavailable, TLMError, Unavailable, WorkerLost, error_from_dict
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord


class AttemptEnded(Exception):
    """What ended an attempt's workers. Even where a component was away from them, nothing is left to wait for."""

    def __init__(self, error: TLMError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass
class Watch:
    """What has been seen of a job's submissions; all of it can be found out again.

    unstarted: since when one is looked at that has no worker yet; infinite once that is settled. alive: since when one
    is seen to run.
    """

    unstarted: dict[str, float] = field(default_factory=dict)
    alive: dict[str, float] = field(default_factory=dict)


class Submissions:
    """Makes the submissions of an attempt and looks after them until they end."""

    def __init__(self, store: JobStore, cluster: Cluster, settings: TrainerSettings) -> None:
        self._store = store
        self._cluster = cluster
        self._settings = settings

    def look_after(self, job: JobRecord, watch: Watch, group: str, *, now: float, deaf_until: float) -> None:
        """Submit a group of the attempt, or see that it goes on.

        now: by the store's clock; deaf_until: when the last round began before which workers may have been unable to
        tell anything. Raises AttemptEnded, WorkerLost, and Unavailable while the cluster or the store is away.
        """
        submission = job.submissions.get(group)
        if submission is None:
            # Written down before it is done: if the cluster then knows nothing of it, it is lost, and starting the
            # same attempt a second time could make two of it.
            submission = f"{job.id}.{group}.{job.attempt}"
            self._cluster.status(submission)  # a cluster that is away is waited for before anything is written
            event = ("workers.submitted", {"group": group, "submission": submission})
            self._store.report(job.tenant, job.id, job.attempt, submissions={group: submission}, events=[event])
            self._submit(job, group, submission)
            return
        status = self._cluster.status(submission)
        if status is Status.WAITING or (status is Status.ALIVE and job.spec.workers > 1):
            self._look_for_late_ones(job, watch, group, status, now)
        if status is Status.WAITING:
            return
        if status is Status.ALIVE:
            silent = now - max(job.updated_at, deaf_until, watch.alive.setdefault(submission, now))
            if silent > self._settings.stall_seconds and (job.spec.workers == 1 or self._has_begun(job, group)):
                self._cluster.stop(submission)
                raise WorkerLost(f"the workers have told nothing for {silent:.0f} s; the attempt was ended")
            return
        job = self._store.get(job.tenant, job.id)  # as its workers left it
        done = published(self._store, job)
        if all(node.name in done for node in plan_of(job).group(group)):
            return
        raise AttemptEnded(self._why(job, status, submission))

    def _submit(self, job: JobRecord, group: str, submission: str) -> None:
        try:
            self._cluster.submit(submission, self._command(job, group), **self._settings.needs(job.spec.workers))
        except ClusterUnavailable:
            # A head that has just started has a job server before it can take jobs. Where it says itself that it
            # knows nothing of the submission, nothing was started, and the same attempt may ask again.
            if self._cluster.status(submission) is Status.UNKNOWN:
                self._store.report(job.tenant, job.id, job.attempt, submissions={group: None})
            raise

    def _look_for_late_ones(self, job: JobRecord, watch: Watch, group: str, status: Status, now: float) -> None:
        """Say, once, that workers have not started for longer than a start takes: most often there is no room.

        A single worker is the submission itself; several are started by theirs, which is alive before they are.
        """
        submission = job.submissions[group]
        if now - watch.unstarted.setdefault(submission, now) < self._settings.start_seconds:
            return
        watch.unstarted[submission] = math.inf
        if status is Status.WAITING or not self._has_begun(job, group):
            each = self._settings.cpus_per_worker(job.spec.workers)
            gpus = f" and {self._settings.worker_gpus:g} GPU(s)" if self._settings.worker_gpus else ""
            late = ClusterUnavailable(
                f"{job.spec.workers} worker(s) of {each:g} CPU(s){gpus} have not started in "
                f"{self._settings.start_seconds:g} s: the cluster is slow, or has no room for them yet; then they "
                "start as soon as others end, or workers are added"
            )
            report_waiting(self._store, job, late)

    def _has_begun(self, job: JobRecord, group: str) -> bool:
        """Whether one of several workers has told anything yet. Until then there may be no room for all of them."""
        newest = self._store.events(job.tenant, job.id, after=job.last_event - 1)
        last = newest[0].type if newest and newest[0].at >= job.updated_at else None
        if last == "workers.submitted":
            return False
        if len(job.submissions) == 1 and last != "job.waiting":
            return True
        # What was told last need not be its own: we have told that it waits, or another group has ended.
        own = {node.name for node in plan_of(job).group(group)}
        events = self._store.events(job.tenant, job.id, after=max(0, job.last_event - 5000), limit=5000)
        return any(e.attempt == job.attempt and e.type == "stage.started" and e.data["node"] in own for e in events)

    def _command(self, job: JobRecord, group: str) -> list[str]:
        workers, settings = job.spec.workers, self._settings
        cpus, gpus = settings.cpus_per_worker(workers), settings.worker_gpus
        assignment = Assignment(job.tenant, job.id, job.attempt, group, workers, cpus, gpus)
        return [settings.python, "-m", "services.trainer.program", *assignment.arguments()]

    def _why(self, job: JobRecord, status: Status, submission: str) -> TLMError:
        """What ended an attempt: the error its workers left, else what the cluster says."""
        for event in reversed(self._store.events(job.tenant, job.id, after=max(0, job.last_event - 50))):
            if event.attempt == job.attempt and event.type == "attempt.error":
                return error_from_dict(event.data)
        said = self._cluster.message(submission)
        return WorkerLost(f"the workers ended without a result ({status}): {said[-2000:]}")


def report_waiting(store: JobStore, job: JobRecord, error: Unavailable) -> None:
    """Tell whoever follows the job what it waits for."""
    store.report(job.tenant, job.id, job.attempt, events=[("job.waiting", error.as_dict())])
