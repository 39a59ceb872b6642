"""A regression task from the upload to the prediction, with real stages and without Ray."""

from __future__ import annotations

import json
import random

from fastapi.testclient import TestClient

from tests.contract.gateway import TOKEN
from tests.integration.test_study_kinds import Service, service

__all__ = ["service"]


def files(rng: random.Random) -> dict[str, tuple[str, str]]:
    """The target of a text counts its mentions of rain."""
    splits = {}
    for split, rows in (("train", 60), ("validation", 20), ("test", 30)):
        lines = []
        for _ in range(rows):
            words = [rng.choice(["rain", "dust"]) for _ in range(12)]
            lines.append(json.dumps({"text": " ".join(words), "label": words.count("rain") / 2.4}))
        splits[split] = (f"{split}.jsonl", "\n".join(lines))
    return splits


def test_regression_dataset_is_uploaded_trained_and_predicted(service: Service) -> None:
    options = json.dumps({"metric": "spearman"})
    data = {"name": "regression", "options": options}
    answer = service.client.post("/v1/datasets", data=data, files=files(random.Random(0)))
    assert answer.status_code == 201, answer.text
    assert answer.json()["report"]["targets"]["train"]["max"] <= 5.0
    job = service.finished(dataset="regression", seeds=[0])
    assert job["state"] == "succeeded", job["error"]
    report = service.report(job["id"])
    assert report["metric"] == "spearman" and report["mean"]["test"]["macro_f1"] is None
    texts = {"texts": ["rain rain rain", "dust dust dust"]}
    predictions = service.client.post(f"/v1/models/{job['id']}/predict", json=texts).json()["data"]
    assert [entry["label"] for entry in predictions] == ["label", "label"]
    assert all(entry["probability"] is None and isinstance(entry["value"], float) for entry in predictions)
    browser = TestClient(service.client.app, headers={"Origin": "http://testserver"})
    browser.post("/ui/sign-in", data={"token": TOKEN})
    page = browser.get(f"/ui/jobs/{job['id']}/results").text
    assert "spearman" in page and "Confusion" not in page
    answers = browser.post(f"/ui/jobs/{job['id']}/predict", data={"texts": "rain rain"}).text
    assert f"{predictions[0]['label']}</span>" in answers


def test_learning_curve_of_regression_fails_before_training(service: Service) -> None:
    data = {"name": "regression", "options": json.dumps({"metric": "pearson"})}
    assert service.client.post("/v1/datasets", data=data, files=files(random.Random(1))).status_code == 201
    options = {"sizes": [0.5, 1], "models": ["bilstm", "encoder"]}
    job = service.finished(dataset="regression", kind="learning_curve", options=options)
    assert job["state"] == "failed" and "regression" in job["error"]["message"]
