"""Datasets, corpora, and loads on a real Redis: names, versions, leases."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from services.common.catalog import Catalog
from services.common.catalog_records import CorpusLoad, CorpusVersion, DatasetRecord
from services.common.jobstore import JobStore, Removal
from tlm_core.artifacts import ManifestRef
from tlm_core.corpus.states import CorpusState, LoadState
from tlm_core.errors import AlreadyRunning, Conflict, NotFound, StaleAttempt, UnreadableRecord
from tlm_core.names import new_id

T = "default"
REF = ManifestRef(folder="default/x", digest="1" * 64)


@pytest.fixture
def catalog(redis_client: redis.Redis) -> Catalog:
    return Catalog(redis_client)


def add(catalog: Catalog, name: str = "toy", tenant: str = T, **summary: Any) -> DatasetRecord:
    return catalog.add_dataset(tenant, new_id("ds"), name, raw=REF, report=REF, options={}, summary=summary)


def version_of(load: CorpusLoad, state: CorpusState, version: str = "v1") -> CorpusVersion:
    return CorpusVersion(version=version, language="en", passages=REF, count=3, state=state, created_at=load.created_at)


def finish(catalog: Catalog, load: CorpusLoad, version: str) -> None:
    assert catalog.lease_load(T, load.id, "a", 30)
    over = load.model_copy(update={"state": LoadState.READY, "version": version})
    catalog.save_load(over, "a", version_of(load, CorpusState.READY, version))


def test_name_means_the_newest_version_and_an_id_one_version(catalog: Catalog, redis_client: redis.Redis) -> None:
    first, second = add(catalog, labels=1), add(catalog, labels=2)
    assert (first.version, second.version) == (1, 2)
    assert catalog.dataset(T, "toy") == second
    assert catalog.dataset(T, first.id) == first
    JobStore(redis_client).drop_dataset(T, second.id, second.name, Removal(T, second.id))
    assert catalog.dataset(T, "toy") == first
    assert add(catalog).version == 3, "no number is used twice"


def test_concurrent_uploads_get_different_versions(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda _: add(catalog), range(24)))
    assert sorted(r.version for r in records) == list(range(1, 25))
    assert catalog.dataset(T, "toy").version == 24


@pytest.mark.parametrize("damage", ["", "{}", "[1]"])
def test_lists_show_a_damaged_record_beside_the_others(
    catalog: Catalog, redis_client: redis.Redis, damage: str
) -> None:
    damaged, whole = add(catalog, "bad"), add(catalog)
    for version in ("v1", "v2"):
        time.sleep(0.002)  # ids of one millisecond have no order
        finish(catalog, load := catalog.add_load(T, "docs", "en", REF), version)
    redis_client.set(f"tlm:{{{T}}}:dataset:{damaged.id}", damage)
    redis_client.set(f"tlm:{{{T}}}:load:{load.id}", damage)
    redis_client.hset(f"tlm:{{{T}}}:corpus:docs", "v1", damage)
    listed = {record.id: record for record in catalog.datasets(T)[0]}
    assert listed[whole.id] == whole
    assert str((listed[damaged.id].error or {})["message"]).startswith("The record of dataset")
    for corpus in (catalog.corpus(T, "docs"), catalog.corpora(T)[0][0]):
        states = {version.version: (version.state, bool(version.error)) for version in corpus.versions}
        assert states == {"v1": (CorpusState.FAILED, True), "v2": (CorpusState.READY, False)}
    assert [(entry.state, bool(entry.error)) for entry in catalog.loads(T, "docs")] == [
        (LoadState.FAILED, True),
        (LoadState.READY, False),
    ]
    for read in (lambda: catalog.dataset(T, "bad"), lambda: catalog.load(T, load.id)):
        with pytest.raises(UnreadableRecord, match="is damaged, or another release"):
            read()
    assert "error" not in whole.model_dump(), "no record stores it"


def test_dropped_dataset_leaves_nothing(catalog: Catalog, redis_client: redis.Redis) -> None:
    record, store = add(catalog), JobStore(redis_client)
    store.drop_dataset(T, record.id, record.name, Removal(T, record.id))
    assert list(store.removals()) == [f"{record.tenant}/{record.id}"]
    store.removed(Removal(T, record.id))
    with pytest.raises(NotFound):
        catalog.dataset(T, "toy")
    assert catalog.datasets(T) == ([], False)
    assert set(redis_client.keys()) == {"tlm:{default}:dataset-versions"}


def test_records_of_another_tenant_are_not_found(catalog: Catalog) -> None:
    dataset = add(catalog)
    load = catalog.add_load(T, "docs", "en", REF)
    for call, name in (
        (catalog.dataset, dataset.id), (catalog.dataset, "toy"), (catalog.corpus, "docs"), (catalog.load, load.id),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            call("other", name)
    assert catalog.datasets("other") == ([], False)
    assert catalog.corpora("other") == ([], False)


def test_lists_are_paged_to_their_end(catalog: Catalog) -> None:
    ids = sorted(add(catalog, f"d{n}").id for n in range(5))
    page, more = catalog.datasets(T, limit=2)
    assert ([d.id for d in page], more) == ([ids[4], ids[3]], True)
    page, more = catalog.datasets(T, limit=3, after=ids[3])
    assert ([d.id for d in page], more) == ([ids[2], ids[1], ids[0]], False)
    for name in "cab":
        catalog.add_load(T, name, "en", REF)
    first, more = catalog.corpora(T, limit=2)
    assert ([c.name for c in first], more) == (["a", "b"], True)
    assert [c.name for c in catalog.corpora(T, after="b")[0]] == ["c"]


def test_load_has_one_owner_at_a_time(catalog: Catalog, redis_client: redis.Redis) -> None:
    load = catalog.add_load(T, "docs", "en", REF)
    assert catalog.open_loads() == [(T, load.id)]
    assert catalog.lease_load(T, load.id, "a", 30)
    assert catalog.lease_load(T, load.id, "a", 30), "the owner renews the lease"
    assert not catalog.lease_load(T, load.id, "b", 30)
    redis_client.delete(f"tlm:{{{T}}}:load-lease:{load.id}")  # as if it had expired
    assert catalog.lease_load(T, load.id, "b", 30)
    with pytest.raises(StaleAttempt):
        catalog.save_load(load.model_copy(update={"state": LoadState.FAILED}), "a")
    assert catalog.load(T, load.id) == load


def test_finished_load_is_not_open_and_its_version_is_ready(catalog: Catalog) -> None:
    load = catalog.add_load(T, "docs", "en", REF)
    with pytest.raises(Conflict, match="queued"):
        catalog.ready_version(T, "docs")
    finish(catalog, load, "v1")
    assert catalog.open_loads() == []
    assert catalog.ready_version(T, "docs").version == "v1"


def test_load_that_ends_during_the_look_up_makes_its_version_ready(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loads = catalog.add_load(T, "docs", "en", REF), catalog.loads

    def ended(*args: Any, **kwargs: Any) -> list[CorpusLoad]:
        finish(catalog, load, "v1")
        return loads(*args, **kwargs)

    monkeypatch.setattr(catalog, "loads", ended)
    assert catalog.ready_version(T, "docs").version == "v1"


def test_corpus_name_means_its_newest_ready_version(catalog: Catalog) -> None:
    finish(catalog, first := catalog.add_load(T, "docs", "en", REF), "v1")
    finish(catalog, second := catalog.add_load(T, "docs", "en", REF), "v2")
    third = catalog.add_load(T, "docs", "en", REF)
    assert catalog.lease_load(T, third.id, "a", 30)
    catalog.save_load(
        third.model_copy(update={"state": LoadState.INDEXING}), "a", version_of(third, CorpusState.LOADING, "v3")
    )
    assert [v.version for v in catalog.corpus(T, "docs").versions] == ["v3", "v2", "v1"]
    assert catalog.ready_version(T, "docs").version == "v2"
    assert catalog.ready_version(T, "docs", "v1").version == "v1"
    with pytest.raises(Conflict, match="loading"):
        catalog.ready_version(T, "docs", "v3")
    with pytest.raises(NotFound, match="v1"):
        catalog.ready_version(T, "docs", "v9")
    assert [load.id for load in catalog.loads(T, "docs")] == sorted(
        (x.id for x in (first, second, third)), reverse=True
    )


def test_corpus_has_one_open_load_at_a_time(catalog: Catalog) -> None:
    load = catalog.add_load(T, "docs", "en", REF)
    for call in (lambda: catalog.add_load(T, "docs", "en", REF), lambda: catalog.drop_corpus(T, "docs")):
        with pytest.raises(AlreadyRunning, match=load.id):
            call()
    catalog.add_load(T, "others", "en", REF)
    assert catalog.open_load(T, "docs") == load
    finish(catalog, load, "v1")
    assert catalog.open_load(T, "docs") is None
    assert catalog.add_load(T, "docs", "en", REF).id != load.id


def test_dropped_corpus_leaves_nothing(catalog: Catalog, redis_client: redis.Redis) -> None:
    for version in ("v1", "v2"):
        finish(catalog, catalog.add_load(T, "docs", "en", REF), version)
    catalog.drop_corpus(T, "docs", "v1")
    assert [v.version for v in catalog.corpus(T, "docs").versions] == ["v2"]
    catalog.drop_corpus(T, "docs")
    with pytest.raises(NotFound):
        catalog.corpus(T, "docs")
    assert set(redis_client.keys()) == set()
