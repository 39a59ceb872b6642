"""Retry, clone, delete, filter and prioritize jobs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from services.api import removal
from services.common.jobstore import JobStore, Removal
from services.common.redis_client import REMOVALS
from tests.contract.gateway import TRAIN, Gateway, add_version, restarted, upload
from tests.contract.job_results import complete, publish
from tests.support import wait_for
from tlm_core import stages
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.corpus.states import CorpusState
from tlm_core.errors import StorageUnavailable, StoreUnavailable, WorkerLost
from tlm_core.jobs.spec import JobRecord

T = "default"
pytestmark = pytest.mark.usefixtures("stocked")
BODY = {"dataset": "toy", "corpus": "docs"}


def submit(api: TestClient, **over: Any) -> str:
    answer = api.post("/v1/jobs", json=BODY | over)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def failed_job(api: TestClient, gateway: Gateway, *, up_to: str = "prepare", **over: Any) -> str:
    """Submit a job that fails after the stage `up_to`, and return its id."""
    job_id = submit(api, **over)
    job = gateway.parts.jobs.claim("a", 60)
    assert job is not None and job.id == job_id
    complete(gateway.parts.jobs, gateway.parts.artifacts, job, gateway.root, up_to=up_to)
    gateway.parts.jobs.fail(job, "a", WorkerLost("gone"))
    return job_id


def done(api: TestClient, job: str) -> list[str]:
    return [s["name"] for s in api.get(f"/v1/jobs/{job}").json()["stages"] if s["done"]]


def test_retry_continues_from_the_failed_stage(api: TestClient, gateway: Gateway) -> None:
    failed = failed_job(api, gateway, seeds=[4])
    upload(api, train=TRAIN + "another film,pos\n")
    add_version(gateway, "docs", "v2", CorpusState.READY)
    answer = api.post(f"/v1/jobs/{failed}/retry")
    assert answer.status_code == 202, answer.text
    again, before = answer.json(), api.get(f"/v1/jobs/{failed}").json()
    assert (again["id"] != failed, again["state"], before["state"]) == (True, "queued", "failed")
    assert again["origin"] == {"job": failed, "how": "retry"}
    assert [again[k] for k in ("dataset_digest", "corpus_version", "spec", "resolved_recipe")] == [
        before[k] for k in ("dataset_digest", "corpus_version", "spec", "resolved_recipe")
    ], "Later uploads change nothing."
    assert done(api, again["id"]) == ["validate", "baseline", "select", "self_train", "prepare"]


def test_only_failed_or_cancelled_jobs_can_be_retried(api: TestClient) -> None:
    job = submit(api)
    refused = api.post(f"/v1/jobs/{job}/retry")
    assert (refused.status_code, refused.json()["facts"]["state"]) == (409, "queued")
    api.post(f"/v1/jobs/{job}/cancel")
    headers = {"Idempotency-Key": "k"}
    first, second = (api.post(f"/v1/jobs/{job}/retry", headers=headers) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["idempotent-replayed"] == "true"
    assert api.post(f"/v1/jobs/{job}/clone", json={}, headers=headers).status_code == 422, "The key belongs to a retry."
    assert api.post("/v1/jobs/job_nope/retry").status_code == 404


def test_clone_pins_unchanged_inputs(api: TestClient, gateway: Gateway) -> None:
    job = submit(api, overrides={"joint.rho2": 5}, metadata={"team": "a"})
    upload(api, train=TRAIN + "another film,pos\n")
    add_version(gateway, "docs", "v2", CorpusState.READY)
    answer = api.post(f"/v1/jobs/{job}/clone", json={"seeds": [7], "overrides": {"joint.rho1": 2}})
    assert answer.status_code == 202, answer.text
    clone, before = answer.json(), api.get(f"/v1/jobs/{job}").json()
    assert (clone["seeds"], clone["metadata"], clone["origin"]["how"]) == ([7], {"team": "a"}, "clone")
    assert (clone["resolved_recipe"]["joint"]["rho1"], clone["resolved_recipe"]["joint"]["rho2"]) == (2, 5)
    assert (clone["dataset_digest"], clone["corpus_version"]) == (before["dataset_digest"], "v1")
    listed = api.get("/v1/jobs").json()["data"]
    assert {entry["dataset"] for entry in listed} == {"toy"} and clone["dataset_id"] == before["dataset_id"]
    newest = api.post(f"/v1/jobs/{job}/clone", json={"dataset": "toy", "corpus": "docs"}).json()
    assert newest["dataset_digest"] != before["dataset_digest"] and newest["corpus_version"] == "v2"


def test_clone_keeps_corpus_and_selector_consistent(api: TestClient) -> None:
    alone = submit(api, corpus=None, overrides={"selection.selector": "none", "joint.rho2": 5})
    clone = api.post(f"/v1/jobs/{alone}/clone", json={"corpus": "docs"}).json()
    assert (clone["corpus_version"], clone["spec"]["overrides"]) == ("v1", {"joint.rho2": 5})
    back = api.post(f"/v1/jobs/{clone['id']}/clone", json={"overrides": {"selection.selector": "none"}}).json()
    assert (back["corpus"], back["corpus_version"]) == (None, None)
    instant = api.post(f"/v1/jobs/{submit(api)}/clone", json={"scale": "instant"}).json()
    assert (instant["corpus"], len(instant["stages"])) == (None, 5)
    both = api.post(f"/v1/jobs/{alone}/clone", json={"corpus": "docs", "overrides": {"selection.selector": "none"}})
    assert (both.status_code, "Omit 'corpus'" in both.json()["detail"]) == (422, True), both.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": [1]}, "/sede: is not a known field"),
        ({"seeds": 3}, "/seeds: must be a list"),
        ({"overrides": {"joint.rho3": 1}}, "Did you mean"),
        ({"priority": 99}, "/priority"),
        ({"max_runtime_seconds": 0}, "/max_runtime_seconds"),
        ({"metadata": {"a=b": "c"}}, "/metadata"),
    ],
)
def test_invalid_clone_is_refused(api: TestClient, changes: dict[str, Any], message: str) -> None:
    job = submit(api)
    answer = api.post(f"/v1/jobs/{job}/clone", json=changes)
    assert (answer.status_code, message in answer.json()["detail"]) == (422, True), answer.text


def test_repeated_clone_survives_a_deleted_dataset(api: TestClient) -> None:
    job, headers = submit(api), {"Idempotency-Key": "k"}
    clone = api.post(f"/v1/jobs/{job}/clone", json={"seeds": [7]}, headers=headers).json()["id"]
    for job_id in (job, clone):
        api.post(f"/v1/jobs/{job_id}/cancel")
    assert api.delete("/v1/datasets/toy").status_code == 204
    again = api.post(f"/v1/jobs/{job}/clone", json={"seeds": [7]}, headers=headers)
    assert (again.status_code, again.json()["id"], again.headers["idempotent-replayed"]) == (202, clone, "true")
    other = api.post(f"/v1/jobs/{job}/clone", json={"seeds": [8]}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


def test_job_on_a_deleted_dataset_cannot_be_retried(api: TestClient, gateway: Gateway) -> None:
    failed = failed_job(api, gateway)
    assert api.delete("/v1/datasets/toy").status_code == 204
    assert api.post(f"/v1/jobs/{failed}/retry").status_code == 404
    assert api.post(f"/v1/jobs/{failed}/clone", json={}).status_code == 404


def test_deleted_job_keeps_shared_artifacts(api: TestClient, gateway: Gateway) -> None:
    failed = failed_job(api, gateway, up_to="export", seeds=[1])
    sharing = submit(api, seeds=[2])
    assert done(api, sharing) == ["validate", "baseline", "select", "self_train", "prepare", "refit_linear"]
    assert api.delete(f"/v1/jobs/{failed}").status_code == 204
    for path in ("", "/events", "/logs", "/model"):
        assert api.get(f"/v1/jobs/{failed}{path}").status_code == 404
    assert done(api, sharing) == ["validate", "baseline", "select", "self_train", "prepare", "refit_linear"]
    folders = {p.parent.parent.name for p in (gateway.root / "storage/default/artifacts").rglob("manifest.json")}
    assert len(folders) == 6, "Artifacts of only the deleted job are deleted."
    api.post(f"/v1/jobs/{sharing}/cancel")
    assert api.delete(f"/v1/jobs/{sharing}").status_code == 204
    assert not any((gateway.root / "storage/default/artifacts").rglob("manifest.json"))
    assert api.delete("/v1/datasets/toy").status_code == 204
    keys = {key for key in gateway.client.keys("tlm:{default}:*") if "corpus" not in key and "corpora" not in key}
    expiring = {key for key in keys if gateway.client.ttl(key) > 0}
    assert keys - expiring <= {"tlm:{default}:dataset-versions", "tlm:{default}:artifacts"} | set(
        gateway.client.keys("tlm:{default}:load*")
    )


def test_deletion_reads_each_job_on_the_same_data_once(
    api: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, *others = (failed_job(api, gateway, up_to="export", seeds=[seed]) for seed in range(4))
    records, read = JobStore._records, list[str]()

    def record(store: JobStore, tenant: str, ids: Sequence[str]) -> list[JobRecord]:
        read.extend(ids)
        return records(store, tenant, ids)

    monkeypatch.setattr(JobStore, "_records", record)
    assert api.delete(f"/v1/jobs/{failed}").status_code == 204
    assert sorted(read) == sorted(others)


def test_job_submitted_during_a_deletion_delays_the_deletion_of_files(
    api: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, store, later = failed_job(api, gateway), gateway.parts.jobs, list[JobRecord]()
    job, unpublish = store.get(T, failed), store.invalidate_artifact

    def submit_meanwhile(*args: Any) -> None:
        if not later:
            later.append(store.submit(T, job.spec, job.resolved)[0])
        unpublish(*args)

    monkeypatch.setattr(store, "invalidate_artifact", submit_meanwhile)
    assert api.delete(f"/v1/jobs/{failed}").status_code == 204
    assert list(store.removals()) == [f"{T}/{failed}"]
    assert any((gateway.root / "storage/default/artifacts").rglob("manifest.json"))
    finish_removals(gateway)


def test_artifacts_of_earlier_releases_are_deleted_with_their_last_job(
    api: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, own = failed_job(api, gateway), submit(api)
    job = gateway.parts.jobs.claim("a", 60)
    assert job is not None and job.id == own
    publish(gateway.parts.jobs, gateway.parts.artifacts, job, "joint.s0", gateway.root / "files")
    gateway.parts.jobs.fail(job, "a", WorkerLost("gone"))
    assert api.delete(f"/v1/jobs/{first}").status_code == 204
    assert done(api, own) == ["validate", "baseline", "select", "self_train", "prepare", "joint.s0"]
    monkeypatch.setattr(stages, "VALIDATE", replace(stages.VALIDATE, version=99))
    assert done(api, own) == []
    assert api.delete(f"/v1/jobs/{own}").status_code == 204
    assert not any((gateway.root / "storage/default/artifacts").rglob("manifest.json"))
    assert not gateway.client.exists("tlm:{default}:artifacts") and not gateway.client.keys(
        "tlm:{default}:job-artifacts:*"
    )


def test_dataset_is_deleted_with_its_jobs_on_request(api: TestClient, gateway: Gateway) -> None:
    failed, queued = failed_job(api, gateway, up_to="export"), submit(api)
    assert api.delete("/v1/datasets/toy?with_jobs=true").status_code == 409
    api.post(f"/v1/jobs/{queued}/cancel")
    assert api.delete("/v1/datasets/toy?with_jobs=true").status_code == 204
    assert api.get(f"/v1/jobs/{failed}").status_code == 404
    assert not any((gateway.root / "storage/default").rglob("manifest.json"))


def test_alias_is_refused_if_its_job_is_deleted_meanwhile(
    api: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, jobs = failed_job(api, gateway, up_to="export"), gateway.parts.jobs
    job, read, reads = jobs.get(T, job_id), jobs.get, list[str]()

    def get(tenant: str, name: str) -> JobRecord:
        record = read(tenant, name)
        reads.append(name)
        if len(reads) == 1:
            jobs.delete(job, Removal(T, job_id))
        return record

    monkeypatch.setattr(jobs, "get", get)
    assert api.put("/v1/models/mail@production", json={"job": job_id}).status_code == 404
    assert gateway.parts.models.aliases(T) == {}


def test_job_that_receives_an_alias_during_its_deletion_stays(
    api: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, delete = failed_job(api, gateway, up_to="export"), gateway.parts.jobs.delete

    def alias_and_delete(job: JobRecord, removal: Removal) -> None:
        gateway.parts.models.put_alias(T, "mail@production", job.id)
        delete(job, removal)

    monkeypatch.setattr(gateway.parts.jobs, "delete", alias_and_delete)
    refused = api.delete(f"/v1/jobs/{job_id}")
    assert (refused.status_code, "alias 'mail@production' points to it" in refused.text) == (409, True)
    assert api.get("/v1/models/mail@production").json()["job"] == job_id
    assert gateway.parts.jobs.removals() == {}


def test_deletion_of_a_dataset_spares_a_job_with_a_new_alias(
    api: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_ids = [failed_job(api, gateway, up_to="export", seeds=[seed]) for seed in range(2)]
    drop = gateway.parts.jobs.drop_dataset

    def alias_and_drop(*args: Any) -> None:
        gateway.parts.models.put_alias(T, "mail@production", job_ids[1])
        drop(*args)

    monkeypatch.setattr(gateway.parts.jobs, "drop_dataset", alias_and_drop)
    assert api.delete("/v1/datasets/toy?with_jobs=true").status_code == 204
    assert [job["id"] for job in api.get("/v1/jobs").json()["data"]] == [job_ids[1]]
    assert gateway.parts.jobs.removals() == {}


class UndeletableStorage(ArtifactStore):
    """A storage that cannot delete files."""

    def delete(self, folder: str) -> None:
        raise StorageUnavailable(f"Cannot delete {folder}: the storage does not answer.")


def test_interrupted_deletion_is_completed(api: TestClient, gateway: Gateway) -> None:
    failed = failed_job(api, gateway, up_to="export")
    settings = gateway.parts.settings
    parts = replace(gateway.parts, artifacts=UndeletableStorage(settings.storage, settings.scratch / "artifacts"))
    with replace(gateway, parts=parts).test_client() as broken:
        assert broken.delete(f"/v1/jobs/{failed}").status_code == 204
        assert broken.delete("/v1/datasets/toy").status_code == 204
        assert broken.get(f"/v1/jobs/{failed}").status_code == broken.get("/v1/datasets/toy").status_code == 404
    assert any((gateway.root / "storage/default").rglob("manifest.json"))
    finish_removals(gateway)
    assert not any((gateway.root / "storage/default").rglob("manifest.json"))


def finish_removals(gateway: Gateway) -> None:
    """Restart the gateway, and wait until it has finished all removals."""
    with restarted(gateway).test_client():
        wait_for(lambda: not gateway.parts.jobs.removals())


class UnavailableOnce(JobStore):
    """A job store that is unavailable for the second deletion."""

    calls = 0

    def delete(self, job: JobRecord, removal: Removal) -> None:
        self.calls += 1
        if self.calls == 2:
            raise StoreUnavailable("Redis does not answer: timed out")
        super().delete(job, removal)


def test_interrupted_deletion_with_jobs_is_completed(api: TestClient, gateway: Gateway) -> None:
    for seed in range(3):
        failed_job(api, gateway, up_to="export", seeds=[seed])
    parts = replace(gateway.parts, jobs=UnavailableOnce(gateway.client))
    with replace(gateway, parts=parts).test_client() as broken:
        assert broken.delete("/v1/datasets/toy?with_jobs=true").status_code == 204
    assert len(api.get("/v1/jobs").json()["data"]) == 2
    finish_removals(gateway)
    assert api.get("/v1/jobs").json()["data"] == []
    assert not any((gateway.root / "storage/default").rglob("manifest.json"))


@pytest.mark.parametrize("damaged", ["", "[]", '{"unknown": 1}', '{"tenant": "default", "id": "x", "folders": 3}'])
def test_damaged_removal_stops_no_other_deletion(gateway: Gateway, damaged: str) -> None:
    folder = gateway.root / "storage" / "default" / "datasets" / "ds_1"
    folder.mkdir(parents=True)
    whole = json.dumps({"tenant": "default", "id": "ds_1", "folders": ["default/datasets/ds_1"]})
    gateway.client.hset(REMOVALS, mapping={"default/a": damaged, "default/ds_1": whole, "default/z": damaged})
    with gateway.parts.removals.round():
        removal.finish_removals(gateway.parts)
    assert not folder.exists()
    assert sorted(gateway.parts.jobs.removals()) == ["default/a", "default/z"], "a person decides about these"
    assert sorted(gateway.parts.removals.skipped) == ["removal default/a", "removal default/z"]


def test_unfinished_job_is_not_deleted(api: TestClient, gateway: Gateway) -> None:
    job = submit(api)
    refused = api.delete(f"/v1/jobs/{job}")
    assert (refused.status_code, refused.json()["facts"]["state"]) == (409, "queued")
    assert gateway.parts.jobs.claim("a", 60)
    assert api.delete(f"/v1/jobs/{job}").status_code == 409


def test_key_of_a_deleted_job_can_be_reused(api: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    first = api.post("/v1/jobs", json=BODY, headers=headers).json()["id"]
    api.post(f"/v1/jobs/{first}/cancel")
    api.delete(f"/v1/jobs/{first}")
    again = api.post("/v1/jobs", json={**BODY, "seeds": [9]}, headers=headers)
    assert (again.status_code, again.json()["id"] != first) == (202, True)


def test_submission_and_deletion_of_a_dataset_are_serialized(api: TestClient) -> None:
    """Either the job is accepted and the dataset stays, or the job is refused."""
    for number in range(6):
        upload(api, name="racing")
        body = {**BODY, "dataset": "racing", "seeds": [number]}
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(api.post, "/v1/jobs", json=body), pool.submit(api.delete, "/v1/datasets/racing")]
        answers = [future.result() for future in futures]
        codes = sorted(answer.status_code for answer in answers)
        assert codes in ([202, 409], [204, 404]), codes
        for job in api.get("/v1/jobs?dataset=racing&state=queued").json()["data"]:
            api.post(f"/v1/jobs/{job['id']}/cancel")
        api.delete("/v1/datasets/racing")


def test_list_filters_can_be_combined(api: TestClient) -> None:
    upload(api, name="other")
    ids = {
        "a": submit(api, metadata={"team": "x", "run": "1"}),
        "b": submit(api, metadata={"team": "x"}, dataset="other"),
        "c": submit(api, metadata={"team": "y"}),
        "d": submit(api),
    }
    upload(api, train=TRAIN + "another film,pos\n")
    ids["e"] = submit(api)
    api.post(f"/v1/jobs/{ids['a']}/cancel")

    def listed(query: str) -> str:
        page = api.get(f"/v1/jobs?{query}").json()["data"]
        return "".join(sorted(name for job in page for name, job_id in ids.items() if job_id == job["id"]))

    dataset = api.get(f"/v1/jobs/{ids['d']}").json()["dataset_id"]
    for query, expected in {
        "label=team=x": "ab", "label=team=x&label=run=1": "a", "label=team=x&state=queued": "b",
        "label=team=y&label=team=x": "", "label=team=x&label=team=x": "ab",
        "dataset=toy": "acde", f"dataset={dataset}": "acd", "dataset=other&label=team=x": "b", "kind=train": "abcde",
        "dataset=toy@v1": "acd", "dataset=toy@v2": "e", "dataset=toy@v9": "",
        "kind=prune": "", "dataset=nope": "", "dataset=toy&kind=train&state=queued&label=team=y": "c",
    }.items():  # fmt: skip
        assert listed(query) == expected, query
    assert api.get("/v1/jobs?label=nonsense").status_code == 422


def test_filtered_pages_have_no_gap_or_repeat(api: TestClient) -> None:
    wanted = [submit(api, metadata={"n": str(n % 2)}) for n in range(9)][1::2]
    for query in ("label=n=1", "label=n=1&state=queued"):
        seen: list[str] = []
        while True:
            after = f"&after={seen[-1]}" if seen else ""
            page = api.get(f"/v1/jobs?{query}&limit=3{after}").json()
            seen += [job["id"] for job in page["data"]]
            if not page["has_more"]:
                break
        assert seen == wanted[::-1]


def test_higher_priority_is_claimed_first(api: TestClient, gateway: Gateway) -> None:
    low, first, high, second = (submit(api, priority=p, seeds=[n]) for n, p in enumerate((-3, 0, 10, 0)))
    api.post(f"/v1/jobs/{high}/pause")
    api.post(f"/v1/jobs/{high}/resume")
    claimed = [gateway.parts.jobs.claim("a", 60) for _ in range(4)]
    assert [job.id for job in claimed if job] == [high, first, second, low]
    assert gateway.parts.jobs.claim("a", 60) is None


def test_run_time_adds_up_over_attempts(api: TestClient, gateway: Gateway) -> None:
    store = gateway.parts.jobs
    submit(api)
    for _ in range(2):
        job = store.claim("a", 60)
        assert job is not None and job.running_since is not None
        store.requeue(job, "a", WorkerLost("gone"), 0)
    job = store.get(T, job.id)
    assert job.running_since is None and 0 < job.ran_seconds < 5
