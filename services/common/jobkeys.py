"""Where the job store keeps what, in Redis.

Prefix `tlm`, tenant in braces:
    tlm:{T}:job:ID        hash, the record            tlm:{T}:jobs        all job ids, sorted by id (that is: by time)
    tlm:{T}:events:ID     stream, ids 1-0, 2-0, …     tlm:{T}:state:S     job ids in state S
    tlm:{T}:metrics:ID    stream                      tlm:{T}:artifacts   artifact id → ManifestRef
    tlm:{T}:logs:ID       stream                      tlm:{T}:checkpoints:ARTIFACT   list of published checkpoints
    tlm:{T}:made:ID       set of artifact ids that the job has published or left checkpoints of
    tlm:{T}:idem:KEY      idempotency                 tlm:queue, tlm:leases          members T/ID, scored by time
    tlm:{T}:kind:K, :on:DATASET, :data:DIGEST, :label:DIGEST   job ids, for lists      tlm:queue:N   other priorities
    tlm:feed              stream of what happened to jobs, for whoever follows all of them
    tlm:removals          T/ID of a job or data set that is gone → what is still to be removed after it
"""

from __future__ import annotations

from tlm_core.artifacts import digest_of
from tlm_core.jobs.spec import JobSpec, Resolved

PREFIX = "tlm"
QUEUE, LEASES, FEED, REMOVALS = f"{PREFIX}:queue", f"{PREFIX}:leases", f"{PREFIX}:feed", f"{PREFIX}:removals"


def key(tenant: str, *parts: str) -> str:
    """The key of something that belongs to a tenant."""
    return ":".join((PREFIX, f"{{{tenant}}}", *parts))


def indexes(tenant: str, spec: JobSpec, resolved: Resolved) -> list[str]:
    """The lists that a job belongs to for good."""
    return [
        key(tenant, "jobs"),
        key(tenant, "kind", spec.kind),
        *(key(tenant, "on", one.id) for one in resolved.data),
        *(key(tenant, "data", digest) for digest in sorted({one.ref.digest for one in resolved.data})),
        *(key(tenant, "label", digest_of(pair)) for pair in sorted(spec.metadata.items())),
    ]
