"""Which of a job's artifacts exist."""

from __future__ import annotations

from services.common.jobreads import JobReads
from tlm_core.artifacts import ManifestRef
from tlm_core.jobs.plan import Plan, plan_of
from tlm_core.jobs.spec import JobRecord


def published(store: JobReads, job: JobRecord, plan: Plan | None = None) -> dict[str, ManifestRef]:
    """Node name → manifest of each stage of the job that is done, by whatever job it was done."""
    done: dict[str, ManifestRef] = {}
    for node in (plan or plan_of(job)).nodes:
        if all(i in done for i in node.inputs.values()):
            digests = {name: ref.digest for name, ref in done.items()}
            ref = node.taken.ref if node.taken else store.artifact(job.tenant, node.artifact_id(digests, job.id))
            if ref is not None:
                done[node.name] = ref
    return done
