"""Jobs over HTTP: accepted once and durably, or refused with advice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from services.common.redis_client import connect
from tests.contract.gateway import AUTH, REF, TRAIN, Gateway, add_dataset, add_version, make_gateway, upload
from tests.contract.job_results import complete
from tlm_core.corpus.states import CorpusState
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.states import State
from tlm_core.training.params import TrainParams

T = "default"
pytestmark = pytest.mark.usefixtures("stocked")
BODY = {"dataset": "toy", "corpus": "docs"}


def test_submitted_job_is_fully_resolved(api: TestClient, gateway: Gateway) -> None:
    answer = api.post(
        "/v1/jobs", json={**BODY, "overrides": {"joint.rho2": 5}, "seeds": [1, 2], "metadata": {"team": "a"}}
    )
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["corpus_version"], job["dataset"]) == ("queued", "v1", "toy")
    assert job["resolved_recipe"]["joint"]["rho2"] == 5
    assert [s["name"] for s in job["stages"]][:4] == ["validate", "baseline", "select", "self_train"]
    assert not any(s["done"] for s in job["stages"])
    record = gateway.parts.jobs.get(T, job["id"])
    assert record.resolved.dataset == gateway.parts.catalog.dataset(T, "toy").raw
    assert api.get(f"/v1/jobs/{job['id']}").json() == job
    for internal in ("owner", "lease_until", "submissions", "tenant", "folder"):
        assert f'"{internal}"' not in answer.text


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_all_stages_of_a_job_compute_in_the_precision_of_the_gateway(gateway: Gateway, precision: str) -> None:
    configured = make_gateway(gateway.client, gateway.root, precision=precision)
    with configured.test_client() as api:
        job = api.post("/v1/jobs", json=BODY).json()
    assert job["resolved_recipe"]["precision"] == precision
    plan = plan_of(gateway.parts.jobs.get(T, job["id"]))
    trained = [node.params.precision for node in plan.nodes if isinstance(node.params, TrainParams)]
    assert trained and set(trained) == {precision}


def test_instant_job_needs_no_corpus_and_trains_the_linear_model_alone(api: TestClient) -> None:
    job = api.post("/v1/jobs", json={"dataset": "toy", "scale": "instant"}).json()
    stages = ["validate", "baseline", "refit_linear", "evaluate_linear", "export_linear"]
    assert [stage["stage"] for stage in job["stages"]] == stages
    assert (job["corpus"], job["scale"]) == (None, "instant")
    estimate = api.post("/v1/jobs/estimate", json={"dataset": "toy", "scale": "instant"}).json()
    assert (estimate["flops"], estimate["memory_bytes"], estimate["disk_bytes"]) == (None, None, None)
    assert estimate["reasons"]["memory_bytes"] == "the job trains no encoder"
    for change in ({"corpus": "docs"}, {"overrides": {"joint.rho2": 5}}, {"recipe": "paper"}, {"kind": "prune"}):
        answer = api.post("/v1/jobs", json={"dataset": "toy", "scale": "instant", **change})
        assert answer.status_code == 422, change


def test_later_upload_does_not_change_a_job(api: TestClient, gateway: Gateway) -> None:
    job = api.post("/v1/jobs", json=BODY).json()
    newer = upload(api, train="text,label\n" + "".join(f"other {n},{n % 2}\n" for n in range(30))).json()
    add_version(gateway, "docs", "v2", CorpusState.READY)
    again = api.get(f"/v1/jobs/{job['id']}").json()
    assert (again["dataset_digest"], again["corpus_version"]) == (job["dataset_digest"], "v1")
    later = api.post("/v1/jobs", json=BODY).json()
    assert (later["dataset_digest"], later["corpus_version"]) == (newer["digest"], "v2")
    pinned = api.post("/v1/jobs", json={"dataset": job["dataset_id"], "corpus": "docs@v1"}).json()
    assert (pinned["dataset_digest"], pinned["corpus_version"]) == (job["dataset_digest"], "v1")


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown scale": ({"scale": "huge"}, 422, "'instant', 'quick', 'tiny', 'small', 'medium' or 'large'"),
    "similar scale": ({"scale": "quik"}, 422, "or 'large' (the nearest is 'quick')"),
    "unknown recipe": ({"recipe": "best"}, 422, "'fast' or 'paper'"),
    "unknown recipe key": ({"overrides": {"joint.rho3": 1}}, 422, "Did you mean"),
    "number where a list belongs": ({"seeds": 3}, 422, "/seeds: must be a list"),
    "list where a number belongs": ({"overrides": {"joint.rho2": [1]}}, 422, "joint.rho2"),
    "unknown field": ({"sede": [1]}, 422, "/sede: is not a known field. Did you mean 'seeds'?"),
    "unlike any field": ({"qqq": 1}, 422, "/qqq: is not a known field. Valid fields: name, kind, dataset, corpus, "),
    "unknown option": (
        {"kind": "prune", "options": {"jbo": "x"}},
        422,
        "/options/jbo: is not a known field. Did you mean 'job'?",
    ),
    "infinite recipe value": ({"overrides": {"joint.rho2": "inf"}}, 422, "joint.rho2: must be a finite number"),
    "infinite rate": ({"overrides": {"finetune.rates": [1e-3, "Infinity"]}}, 422, "finetune.rates.1: must be a finite"),
    "infinite option": (
        {"kind": "learning_curve", "options": {"lstm": {"lr": "inf"}}},
        422,
        "/options/lstm/lr: must be a finite number",
    ),
    "infinite item of an option": (
        {"kind": "learning_curve", "options": {"sizes": [0.1, "inf"]}},
        422,
        "/options/sizes/1: must be a finite number",
    ),
    "option that is no number": (
        {"kind": "prune", "options": {"levels": ["nan"]}},
        422,
        "/options/levels/0: must be a finite number",
    ),
    "infinite limit": ({"max_runtime_seconds": "inf"}, 422, "/max_runtime_seconds: must be a finite number"),
    "no seeds": ({"seeds": []}, 422, "/seeds"),
    "a seed twice": ({"seeds": [1, 1]}, 422, "twice"),
    "negative seed": ({"seeds": [-1]}, 422, "from 0 to 4294967295"),
    "no corpus to select from": (
        {"corpus": None, "overrides": {"selection.selector": "bm25"}},
        422,
        "'bm25' needs a corpus",
    ),
    "corpus not taken": (
        {"overrides": {"selection.selector": "none"}},
        422,
        "uses no corpus. Omit 'corpus'.",
    ),
    "corpus without encoder": ({"scale": "instant"}, 422, "The scale 'instant' uses no corpus. Omit 'corpus'."),
    "unknown corpus": ({"corpus": "nope"}, 404, "No corpus 'nope'"),
    "similar corpus": ({"corpus": "Doc"}, 404, "No corpus 'Doc'. Did you mean 'docs'?"),
    "unknown version": ({"corpus": "docs@v9"}, 404, "no version 'v9'. Its versions: v1"),
    "corpus not ready": ({"corpus": "late"}, 409, "queued"),
    "broken version": ({"corpus": "broken@v1"}, 409, "failed"),
    "unknown data set": ({"dataset": "nope"}, 404, "No dataset 'nope'"),
    "similar data set": ({"dataset": "toys"}, 404, "No dataset 'toys'. Did you mean 'toy'?"),
    "empty data set": ({"dataset": ""}, 422, "/dataset"),
}


@pytest.mark.parametrize(("change", "status", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_invalid_request_creates_no_job(
    api: TestClient, gateway: Gateway, change: dict[str, Any], status: int, message: str
) -> None:
    gateway.parts.catalog.add_load(T, "late", "en", REF)
    add_version(gateway, "broken", "v1", CorpusState.FAILED)
    answer = api.post("/v1/jobs", json=BODY | change)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]
    assert api.get("/v1/jobs").json()["data"] == []


def test_dataset_and_corpus_need_languages_with_equal_terms(api: TestClient, gateway: Gateway) -> None:
    for language in ("zh", "de"):
        add_dataset(gateway, language, {"train": TRAIN}, language=language)
    answer = api.post("/v1/jobs", json={"dataset": "zh", "corpus": "docs"})
    assert answer.status_code == 422, answer.text
    assert "'zh' has the language 'zh', but the corpus 'docs' has the language 'en'" in answer.json()["detail"]
    assert "upload this dataset or corpus again" in answer.json()["detail"]
    german = {"dataset": "de", "corpus": "docs", "overrides": {"selection.query": "rake"}}
    assert "'rake' supports English only" in api.post("/v1/jobs", json=german).json()["detail"]
    for accepted in (
        {"dataset": "zh"},
        {"dataset": "zh", "corpus": "docs", "overrides": {"selection.selector": "whole"}},
        {"dataset": "de", "corpus": "docs"},
    ):
        assert api.post("/v1/jobs", json=accepted).status_code == 202, accepted


@pytest.mark.parametrize(
    ("more", "joint"),
    [
        ({}, ["joint"]),
        ({"overrides": {"joint.enabled": False}}, []),
        ({"overrides": {"joint.enabled": False, "selection.selector": "none"}}, []),
    ],
)
def test_job_without_corpus_trains_on_the_task_alone(api: TestClient, more: dict[str, Any], joint: list[str]) -> None:
    job = api.post("/v1/jobs", json={"dataset": "toy", **more}).json()
    assert (job["corpus_version"], job["resolved_recipe"]["selection"]["selector"]) == (None, "none")
    stages = ["validate", "baseline", "prepare", *joint, "finetune", "refit", "refit_linear", "evaluate", "export"]
    assert [stage["stage"] for stage in job["stages"]] == stages


def test_instant_job_refuses_what_needs_an_encoder(api: TestClient) -> None:
    for change in (
        {"corpus": "docs"},
        {"recipe": "paper"},
        {"overrides": {"joint.rho2": 5}},
        {"kind": "prune"},
        {"seeds": [0, 1]},
    ):
        refused = api.post("/v1/jobs", json={"dataset": "toy", "scale": "instant", **change})
        assert refused.status_code == 422, refused.text


def test_concurrent_posts_with_one_key_create_one_job(api: TestClient, gateway: Gateway) -> None:
    with gateway.served() as url, httpx.Client(base_url=url, headers=AUTH, timeout=30) as client:
        headers = {"Idempotency-Key": "k"}
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: client.post("/v1/jobs", json=BODY, headers=headers), range(200)))
        other = client.post("/v1/jobs", json={**BODY, "scale": "small"}, headers=headers)
    assert {a.status_code for a in answers} == {202}
    assert len({a.json()["id"] for a in answers}) == 1
    assert sum("idempotent-replayed" not in a.headers for a in answers) == 1
    assert len(gateway.parts.jobs.list_jobs(T)[0]) == 1
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    del api


def test_job_list_has_pages_and_a_state_filter(api: TestClient) -> None:
    ids = sorted((api.post("/v1/jobs", json=BODY).json()["id"] for _ in range(3)), reverse=True)
    api.post(f"/v1/jobs/{ids[1]}/cancel")
    first = api.get("/v1/jobs?limit=2").json()
    assert ([j["id"] for j in first["data"]], first["has_more"]) == (ids[:2], True)
    rest = api.get(f"/v1/jobs?limit=2&after={ids[1]}").json()
    assert ([j["id"] for j in rest["data"]], rest["has_more"]) == (ids[2:], False)
    assert [j["id"] for j in api.get("/v1/jobs?state=cancelled").json()["data"]] == [ids[1]]
    assert api.get("/v1/jobs?state=done").status_code == 422


def test_verbs_change_the_state_or_report_it(api: TestClient) -> None:
    job = api.post("/v1/jobs", json=BODY).json()["id"]
    for verb, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        first, second = (api.post(f"/v1/jobs/{job}/{verb}").json() for _ in range(2))
        assert (first["state"], second["state"]) == (state, state), "a repeated verb has no effect"
        assert first["last_event"] == second["last_event"]
    refused = api.post(f"/v1/jobs/{job}/resume")
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal_transition")
    assert refused.json()["facts"]["state"] == "cancelled"
    assert refused.json()["detail"].endswith("because its state is cancelled. The state must be paused.")


def test_job_lists_its_finished_stages(api: TestClient, gateway: Gateway) -> None:
    job_id = api.post("/v1/jobs", json=BODY).json()["id"]
    store = gateway.parts.jobs
    job = store.claim("a", 30)
    assert job is not None
    done = complete(store, gateway.parts.artifacts, job, gateway.root, up_to="prepare")
    view = api.get(f"/v1/jobs/{job_id}").json()
    assert {s["name"]: s["digest"] for s in view["stages"] if s["done"]} == {n: r.digest for n, r in done.items()}
    assert view["state"] == State.RUNNING


def test_metrics_and_logs_have_pages(api: TestClient, gateway: Gateway) -> None:
    job_id = api.post("/v1/jobs", json=BODY).json()["id"]
    store = gateway.parts.jobs
    assert store.claim("a", 30)
    store.report(
        T, job_id, 1, metrics=[{"step": n, "loss": None} for n in range(5)], logs=[f"line {n}" for n in range(5)]
    )
    for kind, key, values in (("metrics", "step", list(range(5))), ("logs", "line", [f"line {n}" for n in range(5)])):
        first = api.get(f"/v1/jobs/{job_id}/{kind}?limit=3").json()
        assert first["has_more"]
        rest = api.get(f"/v1/jobs/{job_id}/{kind}?limit=3&after={first['data'][-1]['id']}").json()
        assert not rest["has_more"]
        assert [point[key] for point in first["data"] + rest["data"]] == values
        assert api.get(f"/v1/jobs/{job_id}/{kind}?after=nonsense").status_code == 422


def test_unknown_job_is_not_found(api: TestClient) -> None:
    for path in (
        "",
        "/events",
        "/events?stream=true",
        "/metrics",
        "/logs",
        "/checkpoints",
        "/model",
        "/report",
        "/selection",
    ):
        answer = api.get(f"/v1/jobs/job_nope{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path


def test_unavailable_redis_returns_503(tmp_path: Path) -> None:
    with make_gateway(connect("redis://127.0.0.1:1/0"), tmp_path).test_client() as api:
        answer = api.get("/v1/jobs")
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "store_unavailable", True)
    assert answer.headers["retry-after"]


def test_repeated_key_survives_a_deleted_dataset(api: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    job = api.post("/v1/jobs", json=BODY, headers=headers).json()
    dataset = api.get("/v1/datasets/toy").json()
    assert api.post(f"/v1/jobs/{job['id']}/cancel").is_success
    assert api.delete(f"/v1/datasets/{dataset['id']}").is_success
    again = api.post("/v1/jobs", json=BODY, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, job["id"])
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("key", ["model.init", "tokenizer.source"])
def test_recipe_cannot_read_local_folders(api: TestClient, key: str) -> None:
    refused = api.post("/v1/jobs", json={**BODY, "overrides": {key: "/etc/../etc/passwd"}})
    assert refused.status_code == 422
    assert key in refused.json()["detail"]


def test_allowed_folder_can_be_a_link(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "encoders").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "encoders")
    configured = make_gateway(gateway.client, gateway.root, model_folders=(tmp_path / "models",))
    with configured.test_client() as api:
        for folder, status in (("models", 202), ("other", 422)):
            over = {"tokenizer.source": str(tmp_path / folder / "own")}
            assert api.post("/v1/jobs", json={**BODY, "overrides": over}).status_code == status


def test_class_weights_need_a_task_with_classes(api: TestClient, gateway: Gateway) -> None:
    scores = "text,label\n" + "".join(f"text {number},{number / 8}\n" for number in range(40))
    add_dataset(gateway, "scores", {"train": scores}, metric="pearson")
    body = {**BODY, "overrides": {"finetune.class_weights": "balanced"}}
    refused = api.post("/v1/jobs", json={**body, "dataset": "scores"})
    assert refused.status_code == 422
    assert "'scores' is a regression task" in refused.json()["detail"]
    assert api.post("/v1/jobs", json=body).status_code == 202
