"""Removes what nothing needs: submissions of ended attempts from the cluster, folders without a record."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from services.common.jobstore import JobStore
from services.common.metrics import ORPHANS
from services.trainer.cluster import RayCluster, Status, Submitted
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import ClusterUnavailable, Conflict, NotFound, UnreadableRecord
from tlm_core.jobs.states import ACTIVE, TERMINAL, State
from tlm_core.names import JOB_ID

log = logging.getLogger(__name__)

# Levels below the tenant's folder at which a record names a folder or one that contains it.
_DEPTHS = {"artifacts": 2, "checkpoints": 3, "corpora": 2, "datasets": 1, "jobs": 2, "parts": 1, "uploads": 1}
_ORPHAN_SECONDS = 7 * 86_400.0
_FEW = 20
_MANY = 1_000_000
_JOB = re.compile(JOB_ID)


@dataclass(frozen=True)
class Sweeper:
    """Stops submissions that an ended attempt has left, and deletes finished ones, which fill the head's memory."""

    store: JobStore
    cluster: RayCluster

    def sweep(self) -> None:
        """Sweep once. Several coordinators may sweep at the same time. Raises the first error of Ray, at the end."""
        errors = []
        for submitted in self.cluster.submissions():
            if self._has_ended(submitted):
                try:
                    self._clear(submitted)
                except ClusterUnavailable as error:  # Ray may refuse one submission; the others must not pile up.
                    errors.append(error)
        if errors:
            raise errors[0]

    def _clear(self, submitted: Submitted) -> None:
        if submitted.status is Status.WAITING and self.cluster.is_lost(submitted.id):
            self.cluster.release(submitted.id)
        elif submitted.status in (Status.WAITING, Status.RUNNING):
            log.warning("Stopping submission %s of an ended attempt", submitted.id)
            self.cluster.stop(submitted.id)
            ORPHANS.labels("submission").inc()
        else:
            self.cluster.delete(submitted.id)

    def _has_ended(self, submitted: Submitted) -> bool:
        """Return whether the attempt has ended, or its job was deleted. Other installations may share the cluster."""
        try:
            job = self.store.get(submitted.tenant, submitted.job)
        except NotFound:
            return self.store.was_deleted(submitted.tenant, submitted.job)
        except UnreadableRecord:
            return False
        return job.attempt > submitted.attempt or job.state not in ACTIVE


@dataclass(frozen=True)
class StorageSweeper:
    """Deletes folders of the storage that no record names, such as partial checkpoints of lost workers.

    Parts of expired uploads are deleted at once, others after a week. Folders of unfinished jobs stay.
    """

    store: JobStore
    artifacts: ArtifactStore

    def sweep(self) -> None:
        """Sweep once. Raises Conflict, and deletes nothing, if most folders have no record.

        Redis then has probably lost records. A few such folders are never an error.
        """
        self.artifacts.check_mounted()
        folders, orphans = 0, list[str]()
        for tenant in self._subfolders("", 1):
            # First the folders, then the records: otherwise a folder that is created in between seems to have none.
            below = [name for kind, depth in _DEPTHS.items() for name in self._subfolders(f"{tenant}/{kind}", depth)]
            named = self.store.named_folders(tenant)
            unfinished = {job for state in set(State) - TERMINAL for job in self.store.newest_in(tenant, state, _MANY)}
            folders += len(below)
            orphans += [name for name in below if name not in named and not unfinished.intersection(_JOB.findall(name))]
        if len(orphans) > max(_FEW, folders / 2):
            raise Conflict(
                f"No record names {len(orphans):,} of {folders:,} folders in the storage. Nothing is deleted. Check "
                "that Redis and the storage belong together."
            )
        expired = [folder for folder in orphans if folder.split("/")[1] == "parts"]  # Their records end by themselves.
        for folder in [*expired, *self.store.orphans(set(orphans) - set(expired), _ORPHAN_SECONDS)]:
            log.warning("Deleting %s, which no record names", folder)
            self.artifacts.delete(folder)
            ORPHANS.labels(folder.split("/")[1]).inc()

    def _subfolders(self, folder: str, depth: int) -> list[str]:
        """Return the folders that lie `depth` levels below a folder."""
        if not depth:
            return [folder]
        path, fs = self.artifacts.path(folder).rstrip("/"), self.artifacts.fs
        with self.artifacts.errors(f"listing {folder}"):
            entries = fs.ls(path, detail=True, refresh=True) if fs.exists(path) else []
        names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]
        return [below for name in names for below in self._subfolders(f"{folder}/{name}".lstrip("/"), depth - 1)]
