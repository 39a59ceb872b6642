"""The situation of a job: its plan and which of its artifacts are published."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.errors import CorruptArtifact, NotFound, StorageUnavailable
from tlm_core.jobs.plan import Node, Plan, plan_of
from tlm_core.jobs.spec import JobRecord

if TYPE_CHECKING:
    from services.common.jobstore import JobStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Situation:
    """A job with its plan and its published artifacts, at the time of `read`.

    done: node name → reference of the published artifact. Another job may have published it.
    """

    job: JobRecord
    plan: Plan
    done: dict[str, ManifestRef]

    @classmethod
    def read(cls, store: JobStore, job: JobRecord) -> Situation:
        """Return the situation of a job, as read from the job store."""
        situation, earlier = cls(job, plan_of(job), {}), store.published_by(job)
        done, waiting = situation.done, list(situation.plan.nodes)
        while level := [node for node in waiting if done.keys() >= set(node.inputs.values())]:
            names = {node.name for node in level}
            waiting = [node for node in waiting if node.name not in names]
            done |= {node.name: node.reused.ref for node in level if node.reused}
            nodes = [node for node in level if not node.reused]
            ids = [situation.artifact_id(node) for node in nodes]
            refs = zip(nodes, ids, store.artifacts(job.tenant, ids), strict=True)
            published = ((node.name, ref or earlier.get(artifact)) for node, artifact, ref in refs)
            done |= {name: ref for name, ref in published if ref is not None}
        return situation

    def artifact_id(self, node: Node) -> str:
        """Return the id of a node's artifact. The node's inputs must be published."""
        return node.artifact_id({name: ref.digest for name, ref in self.done.items()}, self.job.id)

    def artifact_ids(self) -> list[str]:
        """Return the ids of the artifacts of all nodes whose inputs are done, in the order of the plan."""
        return [self.artifact_id(n) for n in self.plan.nodes if self.done.keys() >= set(n.inputs.values())]

    def ready(self) -> list[Node]:
        """Return the nodes that are not done but whose inputs are all done."""
        return self.plan.ready(self.done)

    def is_done(self, group: str) -> bool:
        """Return whether every node of a group is done."""
        return all(node.name in self.done for node in self.plan.group(group))

    def publish(
        self, store: JobStore, node: Node, ref: ManifestRef, *, artifact: str | None = None, cached: bool = True
    ) -> ManifestRef:
        """Publish a node's artifact. Returns `ref`, or the reference that another job has published first.

        artifact: the artifact's id, by default `artifact_id(node)`. cached, errors: see `JobStore.publish`.
        """
        job, artifact = self.job, artifact or self.artifact_id(node)
        return store.publish(
            job.tenant, job.id, job.attempt, artifact=artifact, ref=ref, node=node.name, stage=node.stage.name,
            cached=cached,
        )  # fmt: skip

    def invalidate(self, store: JobStore, node: Node, error: NotFound | CorruptArtifact) -> StorageUnavailable:
        """Unpublish a node's artifact whose files are lost or damaged, so that the node runs again.

        error: states what is wrong with the files. Returns the error with which an attempt ends if it needs the
        artifact. Raises NotFound for an artifact of `source_job`, and the errors of `JobStore.invalidate_artifact`.
        """
        if node.reused:
            raise NotFound(
                f"The artifact of '{node.name}' from job {self.job.spec.source_job} is lost ({error}). It cannot be "
                "computed again, because a new training gives another model. Train a new model, and prune the new job."
            ) from error
        artifact = self.artifact_id(node)
        log.warning("Invalidated artifact %s of %s: %s", artifact, node.name, error)
        store.invalidate_artifact(self.job.tenant, artifact, self.done[node.name], by=self.job)
        return StorageUnavailable(
            f"The artifact of '{node.name}' is lost or damaged. The next attempt computes it again. Cause: {error}"
        )


def folder_prefix(job: JobRecord, artifact: str) -> str:
    """Return the prefix TENANT/artifacts/ARTIFACT/JOB- of the folders to which the attempts of a job write."""
    return f"{job.tenant}/artifacts/{artifact}/{job.id}-"
