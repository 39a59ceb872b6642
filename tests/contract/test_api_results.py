"""Results of a job over HTTP: files with Range and digests, report, selection, predictions."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from typing import Any

import pytest
from fastapi.testclient import TestClient

from services.common.jobstore import CheckpointRef
from tests.contract.filled_dashboard import Contents
from tests.contract.gateway import Gateway
from tests.contract.job_results import complete, make_export, publish
from tests.factories import make_resolved, make_spec
from tlm_core.errors import NonFiniteLoss
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.stages import BASELINE
from tlm_core.training.recipe import resolve

T = "default"


def running(gateway: Gateway, **resolved: Any) -> JobRecord:
    gateway.parts.jobs.submit(T, make_spec(), make_resolved(**resolved))
    job = gateway.parts.jobs.claim("a", 60)
    assert job is not None
    return job


def completed(gateway: Gateway) -> str:
    job = running(gateway)
    complete(gateway.parts.jobs, gateway.parts.artifacts, job, gateway.root)
    return job.id


def test_missing_result_returns_the_state(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway).id
    for path in ("model", "model/files/model.onnx", "report", "selection"):
        answer = api.get(f"/v1/jobs/{job}/{path}")
        assert (answer.status_code, answer.json()["facts"]["state"]) == (409, "running"), path
        assert (answer.json()["code"], answer.json()["retryable"]) == ("not_ready", True)
    assert api.post(f"/v1/models/{job}/predict", json={"texts": ["x"]}).status_code == 409


def test_cancelled_job_has_no_results(api: TestClient, gateway: Gateway) -> None:
    job, _ = gateway.parts.jobs.submit(T, make_spec(), make_resolved())
    assert api.post(f"/v1/jobs/{job.id}/cancel").json()["state"] == "cancelled"
    for path in ("model", "report", "selection"):
        answer = api.get(f"/v1/jobs/{job.id}/{path}")
        assert (answer.status_code, "Retry the job" in answer.json()["detail"]) == (404, True), path


def test_error_of_a_succeeded_job_without_result_advises_to_clone(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    gateway.parts.jobs.finish(job, "a", {})
    answer = api.get(f"/v1/jobs/{job.id}/report")
    assert (answer.status_code, answer.json()["detail"].endswith("Clone the job.")) == (404, True)


def test_model_files_match_their_digests(api: TestClient, gateway: Gateway) -> None:
    job = completed(gateway)
    model = api.get(f"/v1/jobs/{job}/model").json()
    assert {"model.onnx", "labels.json", "model/config.json"} <= {f["name"] for f in model["files"]}
    assert model["size"] == sum(f["size"] for f in model["files"])
    for file in model["files"]:
        answer = api.get(f"/v1/jobs/{job}/model/files/{file['name']}")
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"] == answer.headers["x-checksum-sha256"]
        assert (len(answer.content), answer.headers["etag"]) == (file["size"], f'"{file["sha256"]}"')


def test_interrupted_download_can_be_resumed(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    complete(gateway.parts.jobs, gateway.parts.artifacts, job, gateway.root, up_to="evaluate")
    folder = gateway.root / "files" / "big"
    make_export(folder, size=300_000)
    publish(gateway.parts.jobs, gateway.parts.artifacts, job, "export", folder)
    url, rng, got = f"/v1/jobs/{job.id}/model/files/model/weights.bin", random.Random(0), b""
    etag = api.head(url).headers.get("etag") or api.get(url).headers["etag"]
    while len(got) < 300_000:
        answer = api.get(url, headers={"Range": f"bytes={len(got)}-", "If-Range": etag})
        assert (answer.status_code, answer.headers["content-range"]) == (206, f"bytes {len(got)}-299999/300000")
        got += answer.content[: rng.randint(1, 100_000)]
    assert f'"{hashlib.sha256(got).hexdigest()}"' == etag
    changed = api.get(url, headers={"Range": "bytes=5-", "If-Range": '"another"'})
    assert (changed.status_code, len(changed.content)) == (200, 300_000), "A changed file is sent completely."


@pytest.mark.parametrize(
    ("header", "status", "message"),
    [
        ("bytes=999999999-", 416, "is outside the file of"),
        ("lines=1-2", 400, "bytes=FIRST-LAST"),
        ("bytes=9-2", 400, "bytes=FIRST-LAST"),
        ("bytes", 400, "bytes=FIRST-LAST"),
    ],
)
def test_invalid_range_is_a_problem(api: TestClient, gateway: Gateway, header: str, status: int, message: str) -> None:
    url = f"/v1/jobs/{completed(gateway)}/model/files/labels.json"
    size = len(api.get(url).content)
    answer = api.get(url, headers={"Range": header})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert message in answer.json()["detail"]
    assert answer.headers.get("content-range") == (f"bytes */{size}" if status == 416 else None)


@pytest.mark.parametrize(
    "name", ["../manifest.json", "%2e%2e/%2e%2e/x", "manifest.json", "/etc/passwd", "model", "nope"]
)
def test_only_files_in_the_manifest_are_served(api: TestClient, gateway: Gateway, name: str) -> None:
    answer = api.get(f"/v1/jobs/{completed(gateway)}/model/files/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_finished_job_keeps_results_without_the_cache(api: TestClient, gateway: Gateway) -> None:
    job, store = running(gateway), gateway.parts.jobs
    done = complete(store, gateway.parts.artifacts, job, gateway.root)
    ids = dict(store.events(T, job.id)[-1].data)
    result = {"artifacts": {name: {"artifact": "art", "ref": ref.model_dump()} for name, ref in done.items()}}
    store.finish(job, "a", result)
    store.invalidate_artifact(T, ids["artifact"])
    assert api.get(f"/v1/jobs/{job.id}/model").status_code == 200
    assert all(stage["done"] for stage in api.get(f"/v1/jobs/{job.id}").json()["stages"])


def test_report_is_the_evaluation_report(api: TestClient, gateway: Gateway) -> None:
    assert api.get(f"/v1/jobs/{completed(gateway)}/report").json() == {"test": {"macro_f1": 0.5}}


def test_selection_has_pages_and_provenance(api: TestClient, gateway: Gateway) -> None:
    job = completed(gateway)
    seen: list[dict[str, Any]] = []
    while True:
        page = api.get(f"/v1/jobs/{job}/selection?limit=12&after={len(seen)}").json()
        seen += page["data"]
        if not page["has_more"]:
            break
    assert [p["rank"] for p in seen] == list(range(1, 31))
    assert [[a["train_row"] for a in p["provenance"]] for p in seen[:2]] == [[3], [1, 2]]
    assert page["facts"]["passages"] == 30
    assert api.get(f"/v1/jobs/{job}/selection?after=99").json()["data"] == []


def test_job_without_a_selection_reports_it(api: TestClient, gateway: Gateway) -> None:
    recipe = resolve("fast", "tiny", {"selection.selector": "none"})
    job = running(gateway, recipe=recipe, corpus_name=None, corpus_version=None)
    answer = api.get(f"/v1/jobs/{job.id}/selection")
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith(f"Job {job.id} selected no passages, because it uses no corpus. ")
    assert "To select passages, submit a job with a corpus" in answer.json()["detail"]


def test_checkpoints_can_be_listed_and_downloaded(api: TestClient, gateway: Gateway) -> None:
    job, store, artifacts = running(gateway), gateway.parts.jobs, gateway.parts.artifacts
    done = complete(store, artifacts, job, gateway.root, up_to="prepare")
    node = plan_of(job).node("joint.s0")
    artifact = node.artifact_id({name: ref.digest for name, ref in done.items()}, job.id)
    for step in (10, 20):
        folder = gateway.root / "files" / str(step)
        folder.mkdir()
        (folder / "state.bin").write_bytes(b"x" * step)
        ref = artifacts.write(f"default/checkpoints/{step}", folder, artifact=f"{artifact}/{step}", stage="checkpoint")
        metrics = {"loss": 1.5, "macro_f1": None}
        store.publish_checkpoint(
            T, artifact, CheckpointRef(ref=ref, step=step, node=node.name, job=job.id, attempt=1, metrics=metrics)
        )
    first, second = api.get(f"/v1/jobs/{job.id}/checkpoints").json()["data"]
    assert (first["step"], second["step"], second["node"], second["metrics"]["macro_f1"]) == (10, 20, "joint.s0", None)
    got = api.get(f"/v1/jobs/{job.id}/checkpoints/joint.s0/20/state.bin")
    assert (got.content, got.headers["x-checksum-sha256"]) == (b"x" * 20, second["files"][0]["sha256"])
    for missing in ("joint.s0/30/state.bin", "joint.s1/20/state.bin", "joint.s0/20/nope"):
        assert api.get(f"/v1/jobs/{job.id}/checkpoints/{missing}").status_code == 404


def test_predictions_keep_the_order_of_texts(api: TestClient, gateway: Gateway) -> None:
    job = completed(gateway)
    texts = ["a good film", "bad bad film " * 50, "good", ".", "<script>\u0000ü", "bad"]
    answer = api.post(f"/v1/models/{job}/predict", json={"texts": texts})
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["data"]
    assert [predictions[i]["label"] for i in (0, 1, 2, 5)] == ["good", "bad", "good", "bad"]
    assert predictions[0]["probabilities"]["good"] == predictions[0]["probability"] == pytest.approx(0.8808, abs=1e-4)
    assert all(sum(prediction["probabilities"].values()) == pytest.approx(1) for prediction in predictions)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"texts": []}, "/texts"),
        ({"texts": "one"}, "must be a list"),
        ({"texts": [3]}, "must be a valid string"),
        ({"texts": ["x"] * 257}, "/texts"),
        ({"texts": ["x"], "pairs": ["y"]}, "expects single texts"),
    ],
)
def test_invalid_texts_are_refused(api: TestClient, gateway: Gateway, body: Any, message: str) -> None:
    answer = api.post(f"/v1/models/{completed(gateway)}/predict", json=body)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


def test_linear_model_answers_until_the_final_model_exists(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    complete(gateway.parts.jobs, gateway.parts.artifacts, job, gateway.root, up_to="baseline")
    note = "The job is running. This is its linear model; the final model will replace it."
    answer = api.post(f"/v1/models/{job.id}/predict", json={"texts": ["good", "bad"]}).json()
    assert [prediction["label"] for prediction in answer["data"]] == ["good", "bad"]
    assert answer["model"] == {"name": "linear", "final": False, "note": note}
    model = api.get(f"/v1/jobs/{job.id}/model").json()
    assert (model["final"], model["note"]) == (False, note)
    names = ["linear/labels.json", "linear/model.onnx", "linear/ngrams.json"]
    assert [file["name"] for file in model["files"]] == names
    for file in model["files"]:
        content = api.get(f"/v1/jobs/{job.id}/model/files/{file['name']}").content
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    with tarfile.open(fileobj=io.BytesIO(api.get(f"/v1/jobs/{job.id}/model/archive").content)) as archive:
        assert archive.getnames() == [f"{job.id}/{name}" for name in names]
    for name in ("model.onnx", "linear/outputs.npz"):
        assert api.get(f"/v1/jobs/{job.id}/model/files/{name}").status_code == 409
    complete(gateway.parts.jobs, gateway.parts.artifacts, job, gateway.root)
    answer = api.post(f"/v1/models/{job.id}/predict", json={"texts": ["good"]}).json()
    assert answer["model"] == {"name": "encoder", "final": True, "note": None}
    assert api.get(f"/v1/jobs/{job.id}/model").json()["final"]
    assert api.get(f"/v1/jobs/{job.id}/model/files/linear/model.onnx").status_code == 200, "The name stays valid."


def test_linear_model_remains_after_the_job_failed(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    complete(gateway.parts.jobs, gateway.parts.artifacts, job, gateway.root, up_to="baseline")
    gateway.parts.jobs.fail(job, "a", NonFiniteLoss("The loss is not finite."))
    answer = api.post(f"/v1/models/{job.id}/predict", json={"texts": ["good"]}).json()
    assert answer["model"]["note"] == "The job is failed and has no final model. This is its linear model."


def test_texts_below_the_minimum_confidence_have_no_label(api: TestClient, gateway: Gateway) -> None:
    url = f"/v1/models/{completed(gateway)}/predict"
    answer = api.post(url, json={"texts": ["good", "film"], "min_confidence": 0.8}).json()["data"]
    assert [(row["label"], row["abstained"]) for row in answer] == [("good", False), (None, True)]
    assert answer[1]["probability"] == pytest.approx(0.5) and set(answer[1]["probabilities"]) == {"good", "bad"}
    assert api.post(url, json={"texts": ["good"], "min_confidence": 1.5}).status_code == 422


def test_regression_refuses_a_minimum_confidence(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    complete(gateway.parts.jobs, gateway.parts.artifacts, job, gateway.root, up_to="evaluate")
    folder = gateway.root / "files" / "regression"
    make_export(folder)
    facts = {"labels": ["stars"], "max_length": 8, "pair": False, "task_type": "regression"}
    (folder / "labels.json").write_text(json.dumps(facts))
    publish(gateway.parts.jobs, gateway.parts.artifacts, job, "export", folder)
    answer = api.post(f"/v1/models/{job.id}/predict", json={"texts": ["x"], "min_confidence": 0.5})
    assert (answer.status_code, "Omit 'min_confidence'" in answer.json()["detail"]) == (422, True)


def test_comparison_has_models_and_a_verdict_against_the_first_job(filled: tuple[Gateway, Contents]) -> None:
    gateway, contents = filled
    names = [contents.jobs[name] for name in ("succeeded", "alone", "hostile", "running")]
    with gateway.test_client() as api:
        body = api.get("/v1/jobs/compare", params={"ids": names}).json()
        report = api.get(f"/v1/jobs/{names[1]}/report").json()
    models = {row["name"]: row for row in body["outcomes"][1]["models"]}
    assert list(models) == ["majority", "linear", "encoder", "combined"]
    assert [name for name, row in models.items() if row["file"].startswith("model.onnx")] == ["combined"]
    assert models["encoder"]["file"] == "model/, seed 0"
    assert models["linear"]["mean"]["macro_f1"] == report["models"]["linear"]["mean"]["test"]["macro_f1"]
    alone, hostile, unfinished = body["verdicts"]
    means = [outcome["mean"]["test"]["macro_f1"] for outcome in body["outcomes"][:2]]
    assert alone["job"] == names[1] and alone["verdict"] == "worse"
    assert alone["value"] == pytest.approx(means[1] - means[0]) and alone["low"] < alone["value"] < alone["high"] < 0
    assert hostile["verdict"] is None and hostile["reason"] == "The jobs have different test rows, labels or metrics."
    assert unfinished["reason"] == f"{names[3]} has no predictions on test."


def test_study_serves_no_linear_model_of_one_of_its_sizes(api: TestClient, gateway: Gateway) -> None:
    options = {"sizes": [20, 40], "models": ["bilstm", "tlm"]}
    submitted = gateway.parts.jobs.submit(T, make_spec(kind="learning_curve", options=options), make_resolved())
    job = gateway.parts.jobs.claim("maker", 60)
    assert job is not None and job.id == submitted[0].id
    names = {node.name for node in plan_of(job).nodes if node.stage == BASELINE}
    assert names and BASELINE.name not in names
    complete(gateway.parts.jobs, gateway.parts.artifacts, job, gateway.root)
    assert api.get(f"/v1/jobs/{job.id}/model").status_code == 200
    assert api.get(f"/v1/jobs/{job.id}/model/files/linear/model.onnx").status_code == 404
