"""Ends an attempt at a checkpoint when the cluster has room for more workers. The next attempt starts them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from services.common.jobstore import JobStore
from services.trainer.assignment import Assignment
from tlm_core.errors import WorkerLost
from tlm_core.jobs.plan import plan_of
from tlm_core.training.params import TrainParams
from tlm_core.wording import counted

log = logging.getLogger(__name__)

LOOKS = 8  # number of checks in the `seconds` for which the room must stay free
MIN_STAGE_RATIO = 8  # a stage must still run for this many times `seconds`: a restart costs about a minute


@dataclass
class Growth:
    """Watches whether the cluster has room for more workers of a submission.

    places: a function that returns for how many more workers the cluster has room now. seconds: how long the room must
    stay free, because another job may be about to use it. ended: set when the attempt has ended. requested: the error
    that ends the attempt, or None before `look` requests the end.
    """

    assignment: Assignment
    workers: int
    store: JobStore
    places: Callable[[], int]
    seconds: float
    clock: Callable[[], float] = time.monotonic
    ended: threading.Event = field(default_factory=threading.Event)
    requested: WorkerLost | None = None
    _since: float | None = None

    def watch(self) -> None:
        """Call `look` regularly until it requests the end of the attempt, or `ended` is set. Run this in a thread."""
        while self.workers < self.assignment.max_workers and not self.ended.wait(self.seconds / LOOKS):
            try:
                if self.look():
                    return
            except Exception as error:  # of Redis, or of Ray while its head restarts
                log.warning("Cannot check whether more workers have room: %s", error)

    def look(self) -> bool:
        """Request the end of the attempt if more workers have had room for `seconds` and a restart saves time.

        Returns whether it requested the end.
        """
        more = min(self.places(), self.assignment.max_workers - self.workers)
        if more < 1:
            self._since = None
            return False
        self._since = self.clock() if self._since is None else self._since
        if self.clock() - self._since < self.seconds or not self._saves_time():
            return False
        workers = counted(more, "more worker")
        self.requested = WorkerLost(
            f"The Ray cluster has room for {workers}. The attempt ended at a checkpoint, so that the next attempt can "
            "start more workers."
        )
        self.store.report(self.assignment.tenant, self.assignment.job, self.assignment.attempt, draining=True)
        return True

    def _saves_time(self) -> bool:
        """Return whether a training of this submission runs, and has at least MIN_STAGE_RATIO * `seconds` left."""
        job = self.store.get(self.assignment.tenant, self.assignment.job)
        if job.progress is None or (job.progress.stage_eta_seconds or 0.0) < MIN_STAGE_RATIO * self.seconds:
            return False
        node = plan_of(job).node(job.progress.node)
        return node.group == self.assignment.group and isinstance(node.params, TrainParams)
