"""An upgrade: jobs in a Redis that an earlier state of the service wrote are read, claimed and finished.

`records/YEAR-MONTH.json` holds every key of such a Redis: a running, a requeued, a succeeded and a queued job. The
folder `records/storage` holds an artifact of the same time. Keep the files; add one when the records change.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis

from services.common.jobstore import JobStore
from services.common.redis_client import LEASES
from tests.contract.coordinator_harness import T
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.jobs.states import State

RECORDS = sorted((Path(__file__).parent / "records").glob("*.json"))


def restore(client: redis.Redis, path: Path) -> None:
    for key, (kind, value) in json.loads(path.read_text(encoding="utf-8")).items():
        match kind:
            case "hash":
                client.hset(key, mapping=value)
            case "zset":
                client.zadd(key, dict(value))
            case "stream":
                for entry, fields in value:
                    client.xadd(key, fields, id=entry)
            case "list":
                client.rpush(key, *value)
            case "set":
                client.sadd(key, *value)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_jobs_of_an_earlier_state_of_the_service_go_on(redis_client: redis.Redis, path: Path) -> None:
    restore(redis_client, path)
    store = JobStore(redis_client)
    listed = store.list_jobs(T)[0]
    assert sorted(job.state for job in listed) == ["queued", "queued", "running", "succeeded"]
    assert not any(job.unreadable for job in listed)
    (running,) = (job for job in listed if job.state is State.RUNNING)
    redis_client.zadd(LEASES, {f"{T}/{running.id}": 0})
    adopted = store.claim("new", 30)
    assert adopted is not None and (adopted.id, adopted.attempt) == (running.id, 1)
    assert [checkpoint.step for checkpoint in store.checkpoints(T, "art_1")] == [3]
    assert store.events(T, running.id)[-1].type == "job.adopted"
    store.finish(adopted, "new", {"artifacts": {}, "summary": {}})
    while job := store.claim("new", 30):
        store.finish(job, "new", {"artifacts": {}, "summary": {}})
    assert {job.state for job in store.list_jobs(T)[0]} == {State.SUCCEEDED}


def test_artifact_of_an_earlier_state_of_the_service_is_intact(tmp_path: Path) -> None:
    digest = "388bd311257841810c5cb0cdde0b1f4859a6152a392dcff4705baf395d4a84b1"
    store = ArtifactStore(str(Path(__file__).parent / "records" / "storage"), tmp_path)
    manifest = store.verify(ManifestRef(folder="default/artifacts/art_1/job_1-1", digest=digest))
    assert [file.name for file in manifest.files] == ["rows.txt", "sub/labels.json"]
    assert manifest.meta == {"rows": 2, "rate": 0.5, "labels": ["a", "ü"]}
