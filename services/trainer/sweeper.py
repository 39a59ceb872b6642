"""Removes the submissions of ended attempts from the cluster."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from services.common.jobstore import JobStore
from services.common.metrics import ORPHANS
from services.trainer.cluster import RayCluster, Status, Submitted
from tlm_core.errors import NotFound, UnreadableRecord
from tlm_core.jobs.states import ACTIVE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweeper:
    """Stops submissions that an ended attempt has left, and deletes finished ones, which fill the head's memory."""

    store: JobStore
    cluster: RayCluster

    def sweep(self) -> None:
        """Sweep once. Several coordinators may sweep at the same time."""
        for submitted in self.cluster.submissions():
            if not self._has_ended(submitted):
                continue
            if submitted.status in (Status.WAITING, Status.RUNNING):
                log.warning("Stopping submission %s of an ended attempt", submitted.id)
                self.cluster.stop(submitted.id)
                ORPHANS.labels("submission").inc()
            else:
                self.cluster.delete(submitted.id)

    def _has_ended(self, submitted: Submitted) -> bool:
        """Return whether the attempt has ended. A job without a record may belong to another installation."""
        try:
            job = self.store.get(submitted.tenant, submitted.job)
        except (NotFound, UnreadableRecord):
            return False
        return job.attempt > submitted.attempt or job.state not in ACTIVE
