"""Which of a job's artifacts exist, their names and folders, and taking one back."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from services.common.jobreads import JobReads
from services.common.jobstore import JobStore
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import CorruptArtifact, NotFound, StorageUnavailable
from tlm_core.jobs.plan import Node, Plan, plan_of
from tlm_core.jobs.spec import JobRecord

log = logging.getLogger(__name__)


def artifact_id(job: JobRecord, node: Node, done: Mapping[str, ManifestRef]) -> str:
    """Name of what the node makes of its inputs. done: at least these, as `published` gives them."""
    return node.artifact_id({name: ref.digest for name, ref in done.items()}, job.id)


def folders_of(job: JobRecord, artifact: str) -> str:
    """With what the folder of each attempt of the job at the artifact begins; the attempt's number follows."""
    return f"{job.tenant}/artifacts/{artifact}/{job.id}-"


def published(store: JobReads, job: JobRecord, plan: Plan | None = None) -> dict[str, ManifestRef]:
    """Node name → manifest of each stage of the job that is done, by whatever job it was done."""
    done: dict[str, ManifestRef] = {}
    for node in (plan or plan_of(job)).nodes:
        if all(i in done for i in node.inputs.values()):
            ref = node.taken.ref if node.taken else store.artifact(job.tenant, artifact_id(job, node, done))
            if ref is not None:
                done[node.name] = ref
    return done


def take_back(
    store: JobStore, job: JobRecord, node: Node, done: Mapping[str, ManifestRef], error: NotFound | CorruptArtifact
) -> StorageUnavailable:
    """Take back the node's artifact, whose files are lost or changed as `error` says, so that it is made again.

    done: as `published` gave it. Returns what ends an attempt that cannot do without it. Raises NotFound where it is
    another job's, and cannot be made again.
    """
    if node.taken:
        raise NotFound(
            f"what {job.spec.pruned} has left of '{node.name}' is lost ({error}), and made anew it would be another "
            "model's; train the model again and prune that job"
        ) from error
    artifact = artifact_id(job, node, done)
    log.warning("artifact %s of %s is lost and will be made again: %s", artifact, node.name, error)
    store.forget_artifact(job.tenant, artifact, done[node.name])
    return StorageUnavailable(f"'{node.name}' is lost or damaged, and is made again: {error}")
