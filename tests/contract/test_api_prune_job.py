"""Pruning the model of a named job: the new job reuses exactly the artifacts of that job."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from services.common.situation import Situation
from tests.contract.gateway import TRAIN, Gateway, add_dataset
from tests.contract.job_results import complete
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State

T = "default"
pytestmark = pytest.mark.usefixtures("stocked")
CLOCKED = {"dataset": "toy", "corpus": "docs", "seeds": [3, 4], "overrides": {"joint.budget.seconds": 5}}
MODEL = {"validate", "baseline", "select", "self_train", "prepare"} | {
    f"{stage}.s{seed}" for stage in ("joint", "finetune") for seed in (3, 4)
}


def submit(api: TestClient, **body: Any) -> dict[str, Any]:
    answer = api.post("/v1/jobs", json=body)
    return {**answer.json(), "status_code": answer.status_code}


def prune(api: TestClient, job: str, **changes: Any) -> dict[str, Any]:
    return submit(api, kind="prune", options={"job": job, "levels": [0.2]}, **changes)


def trained(api: TestClient, gateway: Gateway, older: str | None = None, **request: Any) -> JobRecord:
    """Return a finished job whose joint stage had a time budget.

    older: a node whose artifact has the id of another release. request: by default, a `train` job.
    """
    store, job_id = gateway.parts.jobs, submit(api, **request or CLOCKED)["id"]
    job = store.claim("a", 60)
    assert job is not None and job.id == job_id
    refs = complete(store, gateway.parts.artifacts, job, gateway.root)
    digests = {name: ref.digest for name, ref in refs.items()}
    artifacts = {
        node.name: {"artifact": node.artifact_id(digests, job.id), "ref": refs[node.name].model_dump()}
        for node in plan_of(job).nodes
    }
    if older:
        artifacts[older]["artifact"] = "another"
    return store.finish(job, "a", {"artifacts": artifacts, "summary": {}})


def test_model_of_a_time_limited_job_is_pruned(api: TestClient, gateway: Gateway) -> None:
    job = trained(api, gateway)
    response = prune(api, job.id, priority=2)
    assert response["status_code"] == 202, response
    pruning = gateway.parts.jobs.get(T, response["id"])
    done = Situation.read(gateway.parts.jobs, pruning).done
    own = Situation.read(gateway.parts.jobs, job).done
    assert {name: done[name] for name in MODEL} == {name: own[name] for name in MODEL}
    assert (pruning.spec.seeds, pruning.spec.overrides, pruning.spec.priority) == ((3, 4), CLOCKED["overrides"], 2)
    assert (pruning.resolved.recipe, pruning.resolved.corpus_version) == (job.resolved.recipe, "v1")
    assert "ticket.winning.l0.2.s3" in {node.name for node in plan_of(pruning).nodes}
    by_recipe = submit(api, **CLOCKED, kind="prune", options={"levels": [0.2]})["id"]
    assert "joint.s3" not in Situation.read(gateway.parts.jobs, gateway.parts.jobs.get(T, by_recipe)).done


@pytest.mark.parametrize(
    "how", [{**CLOCKED, "options": {"levels": [0.3]}}, {"options": {"levels": [0.3]}, "job": True}]
)
def test_pruning_a_prune_job_uses_its_dense_model(api: TestClient, gateway: Gateway, how: dict[str, Any]) -> None:
    if how.pop("job", False):  # the prune job also names a job
        how["options"]["job"] = trained(api, gateway).id
    job = trained(api, gateway, kind="prune", **how)
    response = prune(api, job.id)
    assert response["status_code"] == 202, response
    pruning, own = gateway.parts.jobs.get(T, response["id"]), Situation.read(gateway.parts.jobs, job).done
    assert {name: artifact.ref for name, artifact in pruning.resolved.reused.items()} == {
        name: own[name] for name in MODEL
    }
    assert Situation.read(gateway.parts.jobs, pruning).done["evaluate"] == own["evaluate"]
    names = {node.name for node in plan_of(pruning).nodes}
    assert "ticket.winning.l0.2.s3" in names and not any("l0.3" in name for name in names)


def test_inherited_fields_must_not_differ(api: TestClient, gateway: Gateway) -> None:
    job = trained(api, gateway)
    for changes in (
        {"seeds": [0]},
        {"dataset": "toy"},
        {"overrides": {"joint.rho2": 2}},
        {"scale": "small"},
        {"corpus": None},
    ):
        refused = prune(api, job.id, **changes)
        assert refused["status_code"] == 422 and f"Omit '{next(iter(changes))}'" in refused["detail"], refused
    first = prune(api, job.id)
    clone = api.post(f"/v1/jobs/{first['id']}/clone", json={"options": {"levels": [0.3]}})
    assert clone.status_code == 202, clone.text
    assert clone.json()["spec"]["options"] == {**first["spec"]["options"], "levels": [0.3]}
    record = gateway.parts.jobs.get(T, clone.json()["id"])
    assert record.resolved.reused.keys() == MODEL


def test_job_without_a_prunable_model_is_refused(api: TestClient, gateway: Gateway) -> None:
    waiting = submit(api, **CLOCKED)["id"]
    curve = {"options": {"sizes": [5, 10], "models": ["bilstm"]}}
    other = submit(api, dataset="toy", kind="learning_curve", overrides={"selection.selector": "none"}, **curve)["id"]
    add_dataset(gateway, "second", {"train": TRAIN.replace("film", "book")})
    sharing = {"options": {"others": ["second"]}, "overrides": {"selection.selector": "none"}}
    shared = submit(api, dataset="toy", kind="share_tickets", **sharing)["id"]
    for source, status, complaint in (
        (waiting, 409, "is queued. Wait until it has succeeded"),
        (other, 422, "has kind 'learning_curve', which provides no dense model"), ("job_none", 404, "job_none"),
        (shared, 422, "Name a job of one of these kinds: train, prune."),
        ("toy", 422, "/options/job"),
    ):  # fmt: skip
        refused = prune(api, source)
        assert (refused["status_code"], complaint in refused["detail"]) == (status, True), refused
    for job_id in (waiting, other, shared):
        api.post(f"/v1/jobs/{job_id}/cancel")
    job = trained(api, gateway)
    high = submit(api, kind="prune", options={"job": job.id, "levels": [0.9]})
    assert high["status_code"] == 422 and "at most 6 heads" in high["detail"], high
    missing = submit(api, kind="prune", options={"levels": [0.2]})
    assert missing["status_code"] == 422 and "'dataset' is missing" in missing["detail"], missing


def test_model_of_another_release_is_refused(api: TestClient, gateway: Gateway) -> None:
    refused = prune(api, trained(api, gateway, older="joint.s3").id)
    assert refused["status_code"] == 409 and "the job's artifact 'joint.s3'" in refused["detail"], refused


def test_repeated_prune_request_survives_a_deleted_job(api: TestClient, gateway: Gateway) -> None:
    job, headers = trained(api, gateway), {"Idempotency-Key": "k"}
    body = {"kind": "prune", "options": {"job": job.id}}
    first = api.post("/v1/jobs", json=body, headers=headers).json()["id"]
    assert api.delete(f"/v1/jobs/{job.id}").status_code == 204
    assert api.post("/v1/jobs", json=body, headers=headers).json()["id"] == first
    assert api.post("/v1/jobs", json={**body, "options": {}, "dataset": "toy"}, headers=headers).status_code == 422
    pruning = gateway.parts.jobs.get(T, first)
    for ref in Situation.read(gateway.parts.jobs, pruning).done.values():
        gateway.parts.artifacts.verify(ref)  # shared artifacts survive the deletion of the other job
    assert pruning.state is State.QUEUED


def test_changing_the_kind_drops_its_options(api: TestClient) -> None:
    curve = {"sizes": [5, 10], "models": ["bilstm", "encoder"]}
    job = submit(api, dataset="toy", corpus="docs", kind="learning_curve", options=curve)["id"]
    clone = api.post(f"/v1/jobs/{job}/clone", json={"kind": "prune", "options": {"levels": [0.2]}})
    assert clone.status_code == 202, clone.text
    spec = clone.json()["spec"]
    assert (spec["kind"], spec["options"]["levels"], "sizes" in spec["options"]) == ("prune", [0.2], False)
    wrong = api.post(f"/v1/jobs/{job}/clone", json={"kind": ["prune"], "options": {}})
    assert wrong.status_code == 422, wrong.text
