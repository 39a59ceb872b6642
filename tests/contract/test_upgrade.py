"""An upgrade: jobs in a Redis that an earlier state of the service wrote are read, claimed and finished.

`records/YEAR-MONTH.json` holds every key of such a Redis: a running, a requeued, a succeeded and a queued job. The
folder `records/uploads` holds those of a dataset, a corpus with two loads, a webhook and an archived job, and
`records/storage` an artifact and the streams of the archived job. `records/model` holds a returned model (two encoders
and a linear model) and its answers. Keep the files; add one when the records change.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis

from services.api.webhook_delivery import Webhooks
from services.common.catalog import Catalog
from services.common.history import History
from services.common.jobstore import JobStore
from services.common.redis_client import LEASES
from tests.contract.coordinator_harness import T
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.corpus.states import CorpusState, LoadState
from tlm_core.jobs.states import State
from tlm_core.serving import load_model

FOLDER = Path(__file__).parent / "records"
RECORDS, UPLOADS = sorted(FOLDER.glob("*.json")), sorted(FOLDER.glob("uploads/*.json"))


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
            case "string":
                client.set(key, value)


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


@pytest.mark.parametrize("path", UPLOADS, ids=lambda path: path.stem)
def test_uploads_of_an_earlier_state_of_the_service_are_read(
    redis_client: redis.Redis, path: Path, tmp_path: Path
) -> None:
    restore(redis_client, path)
    catalog = Catalog(redis_client)
    dataset = catalog.dataset(T, "toy@v1")
    assert (dataset.options, dataset.summary.rows["train"], dataset.summary.selection) == (
        {"text_column": "text"},
        32,
        7,
    )
    version = catalog.corpus(T, "docs").version("v1")
    assert (version.state, version.count, version.near_duplicates_dropped) == (CorpusState.READY, 3, 2)
    queued, loaded = catalog.loads(T, "docs")
    assert (queued.state, loaded.state, loaded.sources) == (LoadState.QUEUED, LoadState.READY, ("s3://texts/a.jsonl",))
    assert catalog.open_loads() == [(T, queued.id)]
    assert catalog.cancel_load(T, queued.id).state is LoadState.CANCELLING
    assert [hook.events for hook in Webhooks(redis_client).all(T)] == [("job.succeeded",)]
    store = JobStore(redis_client, History(ArtifactStore(str(FOLDER / "storage"), tmp_path)))
    (archived,) = store.list_jobs(T)[0]
    assert (archived.unreadable, archived.state, archived.spec.name) == (False, State.SUCCEEDED, "archived")
    assert [event.type for event in store.events(T, archived.id)] == ["job.submitted", "job.claimed", "job.succeeded"]
    assert [point["loss"] for point in store.metrics(T, archived.id)] == [0.5]
    assert [line["line"] for line in store.logs(T, archived.id)] == ["line"]


def test_artifact_of_an_earlier_state_of_the_service_is_intact(tmp_path: Path) -> None:
    digest = "388bd311257841810c5cb0cdde0b1f4859a6152a392dcff4705baf395d4a84b1"
    store = ArtifactStore(str(FOLDER / "storage"), tmp_path)
    manifest = store.verify(ManifestRef(folder="default/artifacts/art_1/job_1-1", digest=digest))
    assert [file.name for file in manifest.files] == ["rows.txt", "sub/labels.json"]
    assert manifest.meta == {"rows": 2, "rate": 0.5, "labels": ["a", "ü"]}


def test_model_of_an_earlier_state_of_the_service_answers_as_before() -> None:
    expected = json.loads((FOLDER / "model" / "expected.json").read_text(encoding="utf-8"))
    model = load_model(FOLDER / "model")
    assert model.labels == ("red", "green", "blue")
    answers = model.probabilities(list(expected)).tolist()
    assert answers == [pytest.approx(of_text, abs=1e-4) for of_text in expected.values()]
