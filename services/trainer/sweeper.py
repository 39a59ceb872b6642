"""Deletes submissions of ended attempts from the cluster, and folders that no record names from the storage."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from urllib.parse import unquote

from services.common.jobstore import JobStore
from services.common.logs import ids_in, log_context
from services.common.metrics import ORPHANS, start_at_zero
from services.common.retriever_client import RetrieverClient
from services.trainer.cluster import RayCluster, Status, Submitted
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import ClusterUnavailable, Conflict, NotFound, UnreadableRecord
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import ACTIVE, TERMINAL, State
from tlm_core.names import JOB_ID

log = logging.getLogger(__name__)

# Kind of folder → depth of the swept folders below TENANT/KIND. A record names each folder in use, or a folder in it.
_DEPTHS = {"artifacts": 2, "checkpoints": 3, "corpora": 2, "datasets": 1, "jobs": 2, "uploads": 1}
start_at_zero(ORPHANS, ("submission", "indexes", "parts", *_DEPTHS))
_MEASURING_SECONDS = 120.0
_ORPHAN_SECONDS = 7 * 86_400.0
_FEW = 20
_MANY = 1_000_000
_JOB = re.compile(JOB_ID)


@dataclass(frozen=True)
class Sweeper:
    """Stops the submissions of ended attempts. Deletes submissions that have ended: they use memory of Ray's head."""

    store: JobStore
    cluster: RayCluster

    def sweep(self) -> None:
        """Sweep once. Several coordinators may sweep at the same time. At the end, raises the first error of Ray."""
        errors = []
        for submitted in self.cluster.submissions():
            job = self._job(submitted)
            request_id = job.request_id if job else ""
            with log_context(job_id=submitted.job, attempt=submitted.attempt, request_id=request_id):
                try:
                    if self._has_ended(submitted, job):
                        self._clear(submitted)
                except ClusterUnavailable as error:  # Ray may refuse a call for one submission only.
                    errors.append(error)
        if errors:
            raise errors[0]

    def _job(self, submitted: Submitted) -> JobRecord | None:
        try:
            return self.store.get(submitted.tenant, submitted.job)
        except (NotFound, UnreadableRecord):
            return None

    def _clear(self, submitted: Submitted) -> None:
        if submitted.status is Status.WAITING and self.cluster.is_lost(submitted.id):
            self.cluster.release(submitted.id)
        elif submitted.status in (Status.WAITING, Status.RUNNING):
            log.warning("Stopping submission %s of an ended attempt", submitted.id)
            self.cluster.stop(submitted.id)
            ORPHANS.labels("submission").inc()
        else:
            self.cluster.delete(submitted.id)

    def _has_ended(self, submitted: Submitted, job: JobRecord | None) -> bool:
        """Return whether the attempt has ended, or its job was deleted.

        An unknown job may belong to another installation. An attempt of such a job counts as ended a week after the end
        of its submission. After a job has succeeded, its workers have `_MEASURING_SECONDS` to measure their device.
        """
        if job is None:
            ended_at = math.inf if submitted.ended_at is None else submitted.ended_at
            is_old = self.store.now() - ended_at > _ORPHAN_SECONDS
            return is_old or self.store.was_deleted(submitted.tenant, submitted.job)
        if job.attempt > submitted.attempt:
            return True
        measures = job.state is State.SUCCEEDED and submitted.status is Status.RUNNING
        since = (job.finished_at or 0.0) + (_MEASURING_SECONDS if measures else 0.0)
        return job.state not in ACTIVE and since <= self.store.now()


@dataclass(frozen=True)
class StorageSweeper:
    """Deletes folders of the storage that no record names, such as partial checkpoints of lost workers.

    Parts of expired uploads are deleted at once, other folders after a week. Folders of unfinished jobs stay. If no
    record names the corpus version of an index, the sweep requests that the retriever deletes the index.
    """

    store: JobStore
    artifacts: ArtifactStore
    retriever: RetrieverClient

    def sweep(self) -> None:
        """Sweep once. Raises Conflict if more than 20 folders, and more than half of all, have no record in Redis.

        In this case Redis has probably lost records, so the sweep deletes nothing. Parts of uploads do not count.
        """
        self.artifacts.check_mounted()
        folders, orphans, expired = 0, list[str](), list[str]()
        for tenant in self.artifacts.subfolders(""):
            # List folders before records. Otherwise a folder that is created in between seems to have no record.
            kinds = [(f"{tenant}/{kind}", depth) for kind, depth in _DEPTHS.items()]
            below = [name for kind, depth in kinds for name in self.artifacts.subfolders(kind, depth)]
            indexes, parts = self._indexes(tenant), self.artifacts.subfolders(f"{tenant}/parts")
            named = self.store.named_folders(tenant)
            unfinished = {job for state in set(State) - TERMINAL for job in self.store.newest_in(tenant, state, _MANY)}
            folders += len(indexes) + len(below)
            orphans += [name for name in indexes if name.replace("/indexes/", "/corpora/", 1) not in named]
            users = unfinished | named
            orphans += [name for name in below if name not in named and users.isdisjoint(_JOB.findall(name))]
            # The record of an upload expires. So parts without a record do not show that Redis has lost records.
            expired += [name for name in parts if name not in named]
        if len(orphans) > max(_FEW, folders / 2):
            raise Conflict(
                f"{len(orphans):,} of {folders:,} folders in the storage have no record in Redis. The coordinator "
                "deletes none of them. Check that Redis and the storage belong together."
            )
        for folder in [*expired, *self.store.orphans(orphans, _ORPHAN_SECONDS)]:
            with log_context(**ids_in(folder)):
                log.warning("Deleting %s, which no record names", folder)
                self._delete(folder)
            ORPHANS.labels(folder.split("/")[1]).inc()

    def _indexes(self, tenant: str) -> list[str]:
        """Return TENANT/indexes/NAME/VERSION for each index of which the storage has a record."""
        folders, fs = self.artifacts.subfolders(f"{tenant}/indexes"), self.artifacts.fs
        with self.artifacts.errors(f"listing the indexes of {tenant}"):
            files = [(folder, fs.ls(self.artifacts.path(folder), detail=False, refresh=True)) for folder in folders]
        # The files are VERSION.json and VERSION.progress.json.
        return sorted(
            {f"{folder}/{path.rpartition('/')[2].split('.')[0]}" for folder, paths in files for path in paths}
        )

    def _delete(self, folder: str) -> None:
        tenant, kind, *names = folder.split("/")
        if kind == "indexes":
            self.retriever.delete_corpus(tenant, *map(unquote, names))
        else:
            self.artifacts.delete(folder)
