"""What a job leaves, over HTTP: files with Range and digests, report, selection, predictions."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
from fastapi.testclient import TestClient

from services.common.jobstore import CheckpointRef
from tests.contract.gateway import Gateway
from tests.contract.made_results import complete, make_export, publish
from tests.factories import make_resolved, make_spec
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import JobRecord
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


def test_before_there_is_a_result_the_answer_is_the_state(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway).id
    for path in ("model", "model/files/model.onnx", "report", "selection"):
        answer = api.get(f"/v1/jobs/{job}/{path}")
        assert (answer.status_code, answer.json()["facts"]["state"]) == (409, "running"), path
    assert api.post(f"/v1/jobs/{job}/predict", json={"texts": ["x"]}).status_code == 409


def test_of_a_job_that_is_over_what_it_has_not_made_is_not_there(api: TestClient, gateway: Gateway) -> None:
    job, _ = gateway.parts.jobs.submit(T, make_spec(), make_resolved())
    assert api.post(f"/v1/jobs/{job.id}/cancel").json()["state"] == "cancelled"
    for path in ("model", "report", "selection"):
        answer = api.get(f"/v1/jobs/{job.id}/{path}")
        assert (answer.status_code, "Retry it" in answer.json()["detail"]) == (404, True), path


def test_every_file_of_the_model_is_listed_and_has_the_digest_that_is_told(api: TestClient, gateway: Gateway) -> None:
    job = completed(gateway)
    model = api.get(f"/v1/jobs/{job}/model").json()
    assert {"model.onnx", "labels.json", "model/config.json"} <= {f["name"] for f in model["files"]}
    assert model["size"] == sum(f["size"] for f in model["files"])
    for file in model["files"]:
        answer = api.get(f"/v1/jobs/{job}/model/files/{file['name']}")
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"] == answer.headers["x-checksum-sha256"]
        assert (len(answer.content), answer.headers["etag"]) == (file["size"], f'"{file["sha256"]}"')


def test_a_download_cut_anywhere_goes_on_and_is_whole(api: TestClient, gateway: Gateway) -> None:
    job = running(gateway)
    complete(gateway.parts.jobs, gateway.parts.artifacts, job, gateway.root, up_to="evaluate")
    folder = gateway.root / "made" / "big"
    make_export(folder, size=300_000)
    publish(gateway.parts.jobs, gateway.parts.artifacts, job, "export", folder)
    url, chance, got = f"/v1/jobs/{job.id}/model/files/model/weights.bin", random.Random(0), b""
    etag = api.head(url).headers.get("etag") or api.get(url).headers["etag"]
    while len(got) < 300_000:
        answer = api.get(url, headers={"Range": f"bytes={len(got)}-", "If-Range": etag})
        assert (answer.status_code, answer.headers["content-range"]) == (206, f"bytes {len(got)}-299999/300000")
        got += answer.content[: chance.randint(1, 100_000)]
    assert f'"{hashlib.sha256(got).hexdigest()}"' == etag
    changed = api.get(url, headers={"Range": "bytes=5-", "If-Range": '"another"'})
    assert (changed.status_code, len(changed.content)) == (200, 300_000), "other bytes are sent whole"


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ("bytes=999999999-", 416, "is outside the file of"),
        ("lines=1-2", 400, "bytes=FIRST-LAST"),
        ("bytes=9-2", 400, "bytes=FIRST-LAST"),
        ("bytes", 400, "bytes=FIRST-LAST"),
    ],
)
def test_a_range_that_cannot_be_served_is_a_problem_like_any_other(
    api: TestClient, gateway: Gateway, asked: str, status: int, said: str
) -> None:
    url = f"/v1/jobs/{completed(gateway)}/model/files/labels.json"
    size = len(api.get(url).content)
    answer = api.get(url, headers={"Range": asked})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert said in answer.json()["detail"]
    assert answer.headers.get("content-range") == (f"bytes */{size}" if status == 416 else None)


@pytest.mark.parametrize(
    "name", ["../manifest.json", "%2e%2e/%2e%2e/x", "manifest.json", "/etc/passwd", "model", "nope"]
)
def test_only_what_the_manifest_names_is_served(api: TestClient, gateway: Gateway, name: str) -> None:
    answer = api.get(f"/v1/jobs/{completed(gateway)}/model/files/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_finished_job_keeps_its_result_when_the_cache_forgets(api: TestClient, gateway: Gateway) -> None:
    job, store = running(gateway), gateway.parts.jobs
    done = complete(store, gateway.parts.artifacts, job, gateway.root)
    ids = dict(store.events(T, job.id)[-1].data)
    result = {"artifacts": {name: {"artifact": "art", "ref": ref.model_dump()} for name, ref in done.items()}}
    store.finish(job, "a", result)
    store.invalidate_artifact(T, ids["artifact"])
    assert api.get(f"/v1/jobs/{job.id}/model").status_code == 200
    assert all(stage["done"] for stage in api.get(f"/v1/jobs/{job.id}").json()["stages"])


def test_the_report_is_the_one_of_the_evaluation(api: TestClient, gateway: Gateway) -> None:
    assert api.get(f"/v1/jobs/{completed(gateway)}/report").json() == {"test": {"macro_f1": 0.5}}


def test_the_selection_pages_with_its_provenance(api: TestClient, gateway: Gateway) -> None:
    job = completed(gateway)
    seen: list[dict[str, Any]] = []
    while True:
        page = api.get(f"/v1/jobs/{job}/selection?limit=12&after={len(seen)}").json()
        seen += page["data"]
        if not page["has_more"]:
            break
    assert [p["rank"] for p in seen] == list(range(1, 31))
    assert [[a["train_row"] for a in p["provenance"]] for p in seen[:2]] == [[3], [1, 2]]
    assert page["facts"] == {"passages": 30}
    assert api.get(f"/v1/jobs/{job}/selection?after=99").json()["data"] == []


def test_a_job_without_selection_says_so(api: TestClient, gateway: Gateway) -> None:
    recipe = resolve("fast", "tiny", {"selection.selector": "none"})
    job = running(gateway, recipe=recipe, corpus_name=None, corpus_version=None)
    answer = api.get(f"/v1/jobs/{job.id}/selection")
    assert (answer.status_code, answer.json()["detail"]) == (
        404,
        f"Job {job.id} has no stage 'select'.",
    )


def test_checkpoints_are_listed_and_their_files_sent(api: TestClient, gateway: Gateway) -> None:
    job, store, artifacts = running(gateway), gateway.parts.jobs, gateway.parts.artifacts
    done = complete(store, artifacts, job, gateway.root, up_to="prepare")
    node = plan_of(job).node("joint.s0")
    artifact = node.artifact_id({name: ref.digest for name, ref in done.items()}, job.id)
    for step in (10, 20):
        folder = gateway.root / "made" / str(step)
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


def test_predictions_come_in_the_order_of_the_texts(api: TestClient, gateway: Gateway) -> None:
    job = completed(gateway)
    texts = ["a good film", "bad bad film " * 50, "good", "", "<script>\u0000ü", "bad"]
    answer = api.post(f"/v1/jobs/{job}/predict", json={"texts": texts})
    assert answer.status_code == 200, answer.text
    found = answer.json()["data"]
    assert [found[i]["label"] for i in (0, 1, 2, 5)] == ["good", "bad", "good", "bad"]
    assert found[0]["probabilities"]["good"] == found[0]["probability"] == pytest.approx(0.8808, abs=1e-4)
    assert all(sum(one["probabilities"].values()) == pytest.approx(1) for one in found)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"texts": []}, "/texts"),
        ({"texts": "one"}, "must be a list"),
        ({"texts": [3]}, "must be a valid string"),
        ({"texts": ["x"] * 257}, "/texts"),
        ({"texts": ["x"], "pairs": ["y"]}, "classifies single texts"),
    ],
)
def test_what_cannot_be_classified_is_refused(api: TestClient, gateway: Gateway, body: Any, says: str) -> None:
    answer = api.post(f"/v1/jobs/{completed(gateway)}/predict", json=body)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]
