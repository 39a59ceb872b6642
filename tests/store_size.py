"""Measure the memory of Redis with many ended jobs: `python -m tests.store_size [JOBS [RECENT]]`.

One job goes through the store as coordinator, workers and sweeper move it, with the artifacts, checkpoints, metrics and
log of a long run. The others are copies of its keys, with ids and digests of their own.
"""

from __future__ import annotations

import re
import secrets
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import redis

from benchmarks.report import figure
from services.common.archive import Archive
from services.common.history import History
from services.common.jobstore import CheckpointRef, JobStore
from services.common.redis_client import key
from tests.factories import make_resolved, make_spec
from tests.redis_server import RedisServer
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import NonFiniteLoss
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord

TENANT = "default"
_OWN = re.compile(r"job_[0-9a-z]{19}|art_[0-9a-f]{40}|[0-9a-f]{64}")


def run_long_job(
    store: JobStore,
    artifacts: ArtifactStore,
    points: int = 4_000,
    lines: int = 2_000,
    *,
    fails: bool = False,
    kind: str = "train",
    seeds: int = 1,
) -> JobRecord:
    """Return a job that ended. Each of its training stages has written this many points and lines.

    fails: whether the job fails after its last stage. kind: of the job, which has the kind's default options. seeds:
    number of seeds.
    """
    resolved = make_resolved(dataset=ManifestRef(folder="default/datasets/ds_1", digest=secrets.token_hex(32)))
    job, _ = store.submit(TENANT, make_spec(kind=kind, seeds=range(seeds)), resolved, idempotency_key=None)
    archive, claimed = Archive(store), store.claim("a", 60)
    assert claimed is not None and claimed.id == job.id
    nodes, digests = {}, dict[str, str]()
    for node in plan_of(claimed).nodes:
        artifact = node.artifact_id(digests, job.id)
        ref = ManifestRef(folder=f"{TENANT}/artifacts/{artifact}/{job.id}-1", digest=secrets.token_hex(32))
        if node.stage.name in ("joint", "finetune", "bilstm"):
            _train(store, job, node.name, artifact, points, lines)
        store.publish(TENANT, job.id, 1, artifact=artifact, ref=ref, node=node.name, stage=node.stage.name)
        archive.move_marked()
        digests[node.name] = ref.digest
        nodes[node.name] = {"artifact": artifact, "ref": ref.model_dump()}
    if fails:
        store.fail(claimed, "a", NonFiniteLoss("The loss is nan."))
    else:
        mean = {split: {"macro_f1": 0.8123, "micro_f1": 0.8345, "accuracy": 0.83} for split in ("validation", "test")}
        store.finish(claimed, "a", {"artifacts": nodes, "summary": {"metric": "macro_f1", "mean": mean}})
    archive.move_marked()
    assert artifacts.fs.exists(artifacts.path(TENANT, "jobs", job.id))
    return store.get(TENANT, job.id)


def _train(store: JobStore, job: JobRecord, node: str, artifact: str, points: int, lines: int) -> None:
    for first in range(0, points, 500):
        steps = range(first, min(points, first + 500))
        store.report(
            TENANT, job.id, 1,
            metrics=[{"node": node, "step": step, "mlm": 8.1 / (step + 1), "tokens": 4096 * step} for step in steps],
            logs=[f"info tlm_core: {node}: step {step:,} of {points:,}" for step in steps if step < lines],
        )  # fmt: skip
    for step in (points // 2, points):
        folder = f"{TENANT}/checkpoints/{artifact}/{job.id}-1/step-{step:09d}"
        ref = ManifestRef(folder=folder, digest=secrets.token_hex(32))
        store.publish_checkpoint(
            TENANT, artifact, CheckpointRef(ref=ref, step=step, node=node, job=job.id, attempt=1, metrics={"mlm": 2.5})
        )


def memory(client: redis.Redis) -> int:
    """Return the bytes that Redis uses for its data.

    Redis counts the buffers of clients only about once a second, so the function first closes the connections.
    """
    client.connection_pool.disconnect(inuse_connections=False)
    info = client.info("memory")
    assert isinstance(info, dict)
    return int(info["used_memory"]) - int(info["mem_clients_normal"]) - int(info["mem_aof_buffer"])


def copy_job(client: redis.Redis, job: JobRecord, count: int) -> None:
    """Copy the keys and index entries of a job `count` times, each time with new ids and digests."""
    own = list(client.scan_iter(f"*{job.id}*", count=10_000))
    hashes = {name: client.hgetall(name) for name in own if client.type(name) == "hash"}
    indexes = [name for name in client.scan_iter("tlm:*", count=10_000) if client.type(name) == "zset"]
    indexes = [name for name in indexes if client.zscore(name, job.id) is not None]
    artifacts = [(name, ref) for name, ref in client.hgetall(key(TENANT, "artifacts")).items() if job.id in ref]
    lists = {name: client.lrange(key(TENANT, "checkpoints", name), 0, -1) for name, _ in artifacts}
    sets = {name: client.smembers(name) for name in own if client.type(name) == "set"}
    for first in range(0, count, 200):
        pipe = client.pipeline(transaction=False)
        for _ in range(first, min(first + 200, count)):
            new = _renamed(job.id)
            for name, fields in hashes.items():
                pipe.hset(new(name), mapping={field: new(value) for field, value in fields.items()})
            for name, members in sets.items():
                pipe.sadd(new(name), *map(new, members))
            for name in indexes:
                pipe.zadd(new(name) if ":data:" in name else name, {new(job.id): 0})
            for name, ref in artifacts:
                pipe.hset(key(TENANT, "artifacts"), new(name), new(ref))
                if lists[name]:
                    pipe.rpush(key(TENANT, "checkpoints", new(name)), *map(new, lists[name]))
        pipe.execute()


def _renamed(job_id: str) -> Callable[[str], str]:
    """Return a function that replaces ids and digests in a text by new values, equal values by equal values."""
    own = {job_id: f"job_{secrets.token_hex(10)[:19]}"}

    def new(match: re.Match[str]) -> str:
        name = match.group()
        if name.startswith("job_"):
            return own[job_id]
        random = secrets.token_hex((len(name) - 4 * name.startswith("art_")) // 2)
        return own.setdefault(name, f"art_{random}" if name.startswith("art_") else random)

    return lambda text: _OWN.sub(new, text)


def bytes_per_copy(client: redis.Redis, job: JobRecord, count: int) -> float:
    """Copy an ended job `count` times. Return the mean bytes of a copy."""
    before = memory(client)
    copy_job(client, job, count)
    return (memory(client) - before) / count


def bytes_per_job(
    store: JobStore, client: redis.Redis, artifacts: ArtifactStore, jobs: int, recent: int, *, fail: bool = False
) -> tuple[float, float]:
    """Fill the store with `jobs` ended jobs, of which `recent` are not archived. fail: they failed.

    Return the mean bytes of a recent job, and of an archived job.
    """
    before = memory(client)
    archived = run_long_job(store, artifacts, fails=fail)
    Archive(store).archive_ended(-60)
    copy_job(client, archived, jobs - recent - 1)
    between = memory(client)
    copy_job(client, run_long_job(store, artifacts, fails=fail), recent - 1)
    after = memory(client)
    return (after - between) / recent, (between - before) / (jobs - recent)


def main() -> None:
    """Print the memory of the store and of each job."""
    jobs, recent = (int(text) for text in (*sys.argv[1:], "100000", "10000")[:2])
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            artifacts = ArtifactStore(f"{folder}/storage", Path(folder) / "cache")
            client = server.client()
            of_recent, of_archived = bytes_per_job(
                JobStore(client, History(artifacts)), client, artifacts, jobs, recent
            )
            curve = run_long_job(JobStore(client, History(artifacts)), artifacts, kind="learning_curve", seeds=3)
            of_curve = bytes_per_copy(client, curve, 100)
            figure(f"Redis with {jobs:,} jobs", [memory(client) / 1e9], unit="GB", goal=1.2, better="lower")
            figure("Redis, a job of the last 30 days", [of_recent / 1e3], unit="kB", goal=50, better="lower")
            figure("Redis, a learning curve with 3 seeds", [of_curve / 1e3], unit="kB", goal=50, better="lower")
            figure("Redis, an archived job", [of_archived / 1e3], unit="kB", goal=5, better="lower")
        finally:
            server.kill()


if __name__ == "__main__":
    main()
