"""The sweeper of the storage deletes what no record names, after a time of grace, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from services.api.removal import delete_job, finish_removals
from services.common.archive import Archive
from services.common.history import History
from services.common.redis_client import ORPHANS, key
from services.retriever.corpus_storage import LoadRecords
from services.retriever.indexes import CorpusKey
from services.trainer.sweeper import StorageSweeper
from tests.contract.coordinator_harness import MovableClockStore
from tests.contract.corpora import LINES
from tests.contract.gateway import Gateway, add_version, make_gateway, upload
from tests.factories import make_resolved, make_spec
from tests.store_size import run_long_job
from tests.support import counted, files_under
from tlm_core.artifacts import ManifestRef
from tlm_core.corpus.states import CorpusState, LoadState
from tlm_core.errors import Conflict, StorageUnavailable
from tlm_core.jobs.spec import JobRecord

T = "default"
WEEK = 7 * 86_400


@pytest.fixture
def gateway(redis_client: redis.Redis, tmp_path: Path) -> Gateway:
    return make_gateway(redis_client, tmp_path)


@pytest.fixture
def store(gateway: Gateway) -> MovableClockStore:
    return MovableClockStore(gateway.client, History(gateway.parts.artifacts))


@pytest.fixture
def sweeper(gateway: Gateway, store: MovableClockStore) -> StorageSweeper:
    return StorageSweeper(store, gateway.parts.artifacts, gateway.parts.retriever)


def add(gateway: Gateway, folder: str) -> Path:
    path = gateway.root / "storage" / folder
    path.mkdir(parents=True)
    (path / "file").write_text("content")
    return path


def sweep_for_a_week(sweeper: StorageSweeper, store: MovableClockStore) -> None:
    sweeper.sweep()
    store.ahead += WEEK
    sweeper.sweep()


def test_folders_without_a_record_are_deleted_after_a_week(
    gateway: Gateway, sweeper: StorageSweeper, store: MovableClockStore
) -> None:
    job = f"job_{'1' * 19}"
    orphans = [
        add(gateway, folder)
        for folder in (
            f"{T}/artifacts/art_1/{job}-1", f"{T}/checkpoints/art_1/{job}-1/step-000000200", f"{T}/datasets/ds_gone",
            f"{T}/jobs/{job}/abc", f"{T}/uploads/abc", f"{T}/corpora/docs/v9",
        )
    ]  # fmt: skip
    sweeper.sweep()
    store.ahead += WEEK - 60
    sweeper.sweep()
    assert all(path.exists() for path in orphans)
    store.ahead += 120
    kinds = ["artifacts", "checkpoints", "corpora", "datasets", "jobs", "uploads"]
    before = [counted("tlm_orphans_total", kind=kind) for kind in kinds]
    sweeper.sweep()
    assert not any(path.exists() for path in orphans)
    assert [counted("tlm_orphans_total", kind=kind) for kind in kinds] == [number + 1 for number in before]
    assert not gateway.client.exists(ORPHANS)


def test_index_without_a_record_of_its_corpus_is_deleted_after_a_week(
    gateway: Gateway, sweeper: StorageSweeper, store: MovableClockStore
) -> None:
    records, retriever = LoadRecords(gateway.parts.artifacts), gateway.parts.retriever
    add_version(gateway, "docs", "v1", CorpusState.READY)
    for version in ("v1", "v2"):
        records.save_source(CorpusKey(T, "docs", version), f"{T}/corpora/docs/{version}", "en")
        retriever.put_corpus(T, "docs", version, folder=f"{T}/corpora/docs/{version}", language="en")
    sweeper.sweep()
    assert len(gateway.retriever.loads) == 2
    sweep_for_a_week(sweeper, store)
    assert [path.rpartition("/")[2] for path in gateway.retriever.loads] == ["v1"]


def test_parts_of_expired_uploads_are_deleted_at_once(gateway: Gateway, sweeper: StorageSweeper) -> None:
    with gateway.test_client() as api:
        known, expired = (api.post("/v1/uploads", json={"name": "a.csv", "size": 9}).json()["id"] for _ in range(2))
    open_parts, gone = (add(gateway, f"{T}/parts/{upload_id}") for upload_id in (known, expired))
    gateway.client.delete(key(T, "upload", expired))
    sweeper.sweep()
    assert open_parts.exists() and not gone.exists()


def test_parts_of_many_expired_uploads_do_not_block_the_sweep(
    gateway: Gateway, sweeper: StorageSweeper, store: MovableClockStore
) -> None:
    parts = [add(gateway, f"{T}/parts/upl_{number}") for number in range(30)]
    orphan = add(gateway, f"{T}/datasets/ds_gone")
    sweep_for_a_week(sweeper, store)
    assert not any(path.exists() for path in [*parts, orphan])


def test_parts_do_not_hide_lost_records(gateway: Gateway, sweeper: StorageSweeper) -> None:
    paths = [add(gateway, f"{T}/datasets/ds_{number}") for number in range(30)]
    with gateway.test_client() as api:
        uploads = [api.post("/v1/uploads", json={"name": "a.csv", "size": 9}).json()["id"] for _ in range(31)]
    paths += [add(gateway, f"{T}/parts/{upload_id}") for upload_id in uploads]
    with pytest.raises(Conflict, match="30 of 30 folders in the storage have no record"):
        sweeper.sweep()
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize("cancelled", [False, True])
def test_upload_of_an_ended_load_is_deleted_after_a_week(
    gateway: Gateway, sweeper: StorageSweeper, store: MovableClockStore, cancelled: bool
) -> None:
    catalog, artifacts, source = gateway.parts.catalog, gateway.parts.artifacts, gateway.root / "source"
    source.mkdir()
    (source / "a.jsonl").write_text(LINES)
    upload = artifacts.write(f"{T}/uploads/up_1", source, artifact="upload", stage="corpus")
    load = catalog.add_load(T, "docs", "en", upload)
    assert catalog.lease_load(T, load.id, "a", 60)
    sweep_for_a_week(sweeper, store)
    artifacts.check(upload)
    if cancelled:
        catalog.cancel_load(T, load.id)
    # Here the loader ends the load and is killed, or a loader that lost its lease writes again.
    ended = LoadState.CANCELLED if cancelled else LoadState.READY
    catalog.save_load(load.model_copy(update={"state": ended, "cut": (upload,)}), "a")
    sweep_for_a_week(sweeper, store)
    assert not (gateway.root / "storage" / upload.folder).exists()


def test_parts_of_an_upload_that_begins_during_the_sweep_stay(
    gateway: Gateway, sweeper: StorageSweeper, store: MovableClockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(gateway, f"{T}/uploads/abc")
    read, parts = store.named_folders, list[Path]()

    def begin_upload(tenant: str) -> set[str]:
        named = read(tenant)
        with gateway.test_client() as api:
            upload_id = api.post("/v1/uploads", json={"name": "a.csv", "size": 9}).json()["id"]
        parts.append(add(gateway, f"{T}/parts/{upload_id}"))
        return named

    monkeypatch.setattr(store, "named_folders", begin_upload)
    sweeper.sweep()
    assert parts[0].exists()


@pytest.mark.parametrize("archived", [False, True])
def test_folders_of_records_stay(
    gateway: Gateway, sweeper: StorageSweeper, store: MovableClockStore, archived: bool
) -> None:
    with gateway.test_client() as api:
        upload(api)
        answer = api.post("/v1/corpora", data={"name": "docs"}, files={"files": ("d.txt", "one passage of text\n")})
        assert answer.status_code == 202, answer.text
    job = run_long_job(store, gateway.parts.artifacts, points=300, lines=10)
    assert job.result is not None
    refs = [node.ref.folder for node in job.result.artifacts.values()]
    refs += [ref.ref.folder for node in job.result.artifacts.values() for ref in store.checkpoints(T, node.artifact)]
    for folder in refs:
        add(gateway, folder)
    if archived:
        assert Archive(store).archive_ended(-60) == 1
    before = set(files_under(gateway.root / "storage"))
    sweep_for_a_week(sweeper, store)
    assert set(files_under(gateway.root / "storage")) == before
    assert len(store.metrics(T, job.id)) > 0


def test_folders_of_unfinished_jobs_stay(gateway: Gateway, sweeper: StorageSweeper, store: MovableClockStore) -> None:
    job, _ = store.submit(T, make_spec(), make_resolved())
    partial = add(gateway, f"{T}/checkpoints/art_1/{job.id}-1/step-000000200")
    sweep_for_a_week(sweeper, store)
    assert partial.exists()
    store.cancel(T, job.id)
    sweep_for_a_week(sweeper, store)
    assert not partial.exists()


def test_artifact_that_a_deleted_job_shared_stays(
    gateway: Gateway, sweeper: StorageSweeper, store: MovableClockStore
) -> None:
    job = run_long_job(store, gateway.parts.artifacts, points=300, lines=10)
    other, _ = store.submit(T, job.spec, job.resolved)
    claimed = store.claim("a", 60)
    assert claimed is not None and job.result is not None
    result = job.result.model_dump(mode="json")
    store.finish(claimed, "a", result)
    Archive(store).move_marked()
    Archive(store).archive_ended(-60)
    shared = [add(gateway, node.ref.folder) for node in job.result.artifacts.values()]
    delete_job(store, gateway.parts.artifacts, store.get(T, job.id))
    sweep_for_a_week(sweeper, store)
    assert all(path.exists() for path in shared)
    delete_job(store, gateway.parts.artifacts, store.get(T, other.id))
    assert not any(path.exists() for path in shared)


def equal_job(store: MovableClockStore, job: JobRecord) -> JobRecord:
    """Submit a job that equals another one, and claim it."""
    store.submit(T, job.spec, job.resolved)
    claimed = store.claim("b", 60)
    assert claimed is not None
    return claimed


def test_deletion_leaves_what_a_later_job_writes(
    gateway: Gateway, store: MovableClockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, artifacts = run_long_job(store, gateway.parts.artifacts, points=300, lines=10), gateway.parts.artifacts
    assert job.result is not None
    validated, delete, written = job.result.artifacts["validate"], artifacts.delete, list[Path]()
    gone = [add(gateway, node.ref.folder) for node in job.result.artifacts.values()]

    def compute_meanwhile(folder: str) -> None:
        if not written and "/artifacts/" in folder:
            later, artifact = equal_job(store, job), validated.artifact
            own = ManifestRef(folder=f"{T}/artifacts/{artifact}/{later.id}-1", digest=validated.ref.digest)
            store.publish(T, later.id, 1, artifact=artifact, ref=own, node="validate", stage="validate")
            written.append(add(gateway, own.folder))
            written.append(add(gateway, f"{T}/checkpoints/{artifact}/{later.id}-1/step-000000001"))
        delete(folder)

    monkeypatch.setattr(artifacts, "delete", compute_meanwhile)
    delete_job(store, artifacts, store.get(T, job.id))
    assert not any(path.exists() for path in gone) and all(path.exists() for path in written)
    assert [path.parent for path in gone if path.parent.exists()] == [written[0].parent], "Empty folders go, too."
    ref = store.artifact(T, validated.artifact)
    assert ref is not None and gateway.root / "storage" / ref.folder == written[0]


def test_deletion_keeps_files_with_which_a_new_job_has_ended(
    gateway: Gateway, store: MovableClockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, artifacts = run_long_job(store, gateway.parts.artifacts, points=300, lines=10), gateway.parts.artifacts
    assert job.result is not None
    result, unpublish, ended = job.result.model_dump(mode="json"), store.invalidate_artifact, list[JobRecord]()
    paths = [add(gateway, node.ref.folder) for node in job.result.artifacts.values()]

    def finish_meanwhile(*values: Any) -> None:
        if not ended:
            ended.append(store.finish(equal_job(store, job), "b", result))
        unpublish(*values)

    monkeypatch.setattr(store, "invalidate_artifact", finish_meanwhile)
    delete_job(store, artifacts, store.get(T, job.id))
    assert all(path.exists() for path in paths) and len(store.removals()) == 1
    finish_removals(replace(gateway.parts, jobs=store))
    assert all(path.exists() for path in paths) and store.removals() == {}
    delete_job(store, artifacts, store.get(T, ended[0].id))
    assert not any(path.exists() for path in paths)


def test_lost_records_delete_no_folders(gateway: Gateway, sweeper: StorageSweeper, store: MovableClockStore) -> None:
    paths = [add(gateway, f"{T}/artifacts/art_{number}/job_{'1' * 19}-1") for number in range(30)]
    for _ in range(2):
        with pytest.raises(Conflict, match="30 of 30 folders in the storage have no record"):
            sweeper.sweep()
        store.ahead += WEEK
    assert all(path.exists() for path in paths)


def test_unmounted_storage_forgets_no_orphan(gateway: Gateway, sweeper: StorageSweeper) -> None:
    add(gateway, f"{T}/uploads/abc")
    with gateway.parts.artifacts.errors("marking", writes=True):
        pass
    sweeper.sweep()
    (gateway.root / "storage").rename(gateway.root / "away")
    gateway.parts.artifacts._is_new = lambda: False
    with pytest.raises(StorageUnavailable):
        sweeper.sweep()
    assert gateway.client.hlen(ORPHANS) == 1
