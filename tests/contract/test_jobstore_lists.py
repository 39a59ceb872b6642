"""Lists of jobs in the job store, damaged records, and the jobs of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import redis

from services.common import job_reads
from services.common.jobstore import JobStore, Removal
from tests.contract.coordinator_harness import T, bring_to, claim, submit
from tests.factories import make_resolved, make_spec
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import Conflict, NotFound, UnreadableRecord
from tlm_core.jobs.spec import DatasetInput, JobRecord
from tlm_core.jobs.states import State


def test_damaged_record_does_not_hide_other_jobs(store: JobStore, redis_client: redis.Redis) -> None:
    damaged, other, replaced = (submit(store).id for _ in range(3))
    first = claim(store)
    redis_client.hset(f"tlm:{{{T}}}:job:{damaged}", "submissions", "[")
    redis_client.delete(f"tlm:{{{T}}}:job:{replaced}")
    redis_client.set(f"tlm:{{{T}}}:job:{replaced}", "no hash")
    with pytest.raises(UnreadableRecord, match="Redis rejects a command"):
        store.report(T, first.id, 1, submissions={"main": "x"})
    with pytest.raises(UnreadableRecord, match=damaged):
        store.get(T, damaged)
    listed = {job.id: job for job in store.list_jobs(T)[0]}
    assert [listed[job].unreadable for job in (damaged, other, replaced)] == [True, False, True]
    assert listed[damaged].state is State.RUNNING
    assert listed[damaged].error is not None and listed[damaged].error["code"] == "unreadable_record"
    assert {job.id for job in store.jobs_on_data(T, "0" * 64)} == set(listed)
    assert (claim(store).id, store.claim("a", 30)) == (other, None)


def test_dataset_is_dropped_without_a_look_at_finished_jobs(store: JobStore, redis_client: redis.Redis) -> None:
    finished = bring_to(store, State.SUCCEEDED)
    redis_client.delete(f"tlm:{{{T}}}:job:{finished.id}")
    redis_client.set(f"tlm:{{{T}}}:job:{finished.id}", "a look would fail")
    store.drop_dataset(T, "ds_1", "toy", Removal(T, "ds_1"))
    assert list(store.removals()) == [Removal(T, "ds_1").member]


def test_dataset_stays_if_a_job_is_submitted_during_its_deletion(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_to(store, State.SUCCEEDED)
    search, late = store._unfinished, list[str]()

    def submit_after(tenant: str, place: str) -> tuple[str, str] | None:
        answer = search(tenant, place)
        if not late:
            late.append(submit(store).id)
        return answer

    monkeypatch.setattr(store, "_unfinished", submit_after)
    with pytest.raises(Conflict) as refused:
        store.drop_dataset(T, "ds_1", "toy", Removal(T, "ds_1"))
    assert refused.value.facts["job"] == late[0]
    assert store.removals() == {}


def test_many_jobs_on_a_dataset_are_read_in_pages(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_reads, "_PAGE", 2)
    finished = [bring_to(store, State.SUCCEEDED).id for _ in range(4)]
    queued, sizes, read = submit(store), list[int](), store._records

    def counted(tenant: str, ids: Sequence[str]) -> list[JobRecord]:
        sizes.append(len(ids))
        return read(tenant, ids)

    monkeypatch.setattr(store, "_records", counted)
    assert [job.id for job in store.jobs_on_data(T, queued.resolved.dataset.digest)] == sorted([*finished, queued.id])
    assert sizes == [2, 2, 1]
    with pytest.raises(Conflict, match=queued.id):
        store.drop_dataset(T, "ds_1", "toy", Removal(T, "ds_1"))
    store.cancel(T, queued.id)
    store.drop_dataset(T, "ds_1", "toy", Removal(T, "ds_1"))


def test_job_lists_are_paged_newest_first_and_filtered_by_state(store: JobStore) -> None:
    ids = sorted(submit(store).id for _ in range(5))
    store.cancel(T, ids[2])
    page, more = store.list_jobs(T, limit=2)
    assert ([j.id for j in page], more) == ([ids[4], ids[3]], True)
    page, more = store.list_jobs(T, limit=10, after=ids[3])
    assert ([j.id for j in page], more) == ([ids[2], ids[1], ids[0]], False)
    assert [j.id for j in store.list_jobs(T, state=State.CANCELLED)[0]] == [ids[2]]
    assert store.list_jobs("other")[0] == []


def test_filtered_list_walks_no_whole_set(store: JobStore, redis_client: redis.Redis) -> None:
    ids = sorted(submit(store).id for _ in range(6))
    for job_id in ids[:3]:
        store.cancel(T, job_id)
    redis_client.config_resetstat()
    filters: dict[str, Any] = {"state": State.CANCELLED, "kind": "train", "datasets": ["ds_0", "ds_1"]}
    page, more = store.list_jobs(T, limit=2, **filters)
    assert ([job.id for job in page], more) == ([ids[2], ids[1]], True)
    page, more = store.list_jobs(T, limit=2, after=ids[1], **filters)
    assert ([job.id for job in page], more) == ([ids[0]], False)
    assert store.list_jobs(T, state=State.CANCELLED, kind="prune")[0] == []
    assert [job.id for job in store.list_jobs(T, search=ids[0])[0]] == [ids[0]]
    used = redis_client.info("commandstats").keys()
    assert not {"cmdstat_zinter", "cmdstat_zunion"} & used


def test_search_reads_no_more_names_than_it_needs(
    store: JobStore, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.common.job_reads._PAGE", 2)
    ids = [store.submit(T, make_spec(name=f"Run {number}"), make_resolved())[0].id for number in range(6)]
    redis_client.config_resetstat()
    page, more = store.list_jobs(T, search="rUN", limit=1)
    assert ([job.id for job in page], more) == ([max(ids)], True)
    used = redis_client.info("commandstats")
    assert used["cmdstat_hmget"]["calls"] == 1 and "cmdstat_hscan" not in used
    assert [job.id for job in store.list_jobs(T, search="run 0")[0]] == [ids[0]]


def test_job_of_another_tenant_is_not_found(store: JobStore) -> None:
    job = submit(store)
    for call in (store.get, store.cancel, store.pause, store.resume):
        with pytest.raises(NotFound):
            call("other", job.id)


def test_job_needs_every_dataset_record_to_exist(store: JobStore, redis_client: redis.Redis) -> None:
    others = (DatasetInput(id="ds_2", ref=ManifestRef(folder="default/datasets/ds_2", digest="2" * 64), options={}),)
    resolved = make_resolved(others=others)
    needs = ["tlm:{default}:dataset:ds_1", "tlm:{default}:dataset:ds_2"]
    redis_client.set(needs[0], "{}")
    with pytest.raises(NotFound, match="ds_2"):
        store.submit(T, make_spec(), resolved, needs=needs, idempotency_key="k")
    redis_client.set(needs[1], "{}")
    job, new = store.submit(T, make_spec(), resolved, needs=needs, idempotency_key="k")
    assert new
    for dataset in ("ds_1", "ds_2"):
        with pytest.raises(Conflict, match=job.id):
            store.drop_dataset(T, dataset, "toy", Removal(T, dataset))
        assert [listed.id for listed in store.list_jobs(T, datasets=[dataset])[0]] == [job.id]
