"""Jobs of several kinds with real stages and a simulated Ray."""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from fastapi.testclient import TestClient

from services.trainer.cluster import Status
from services.trainer.coordinator import Coordinator
from services.trainer.local_stages import LocalThreads
from services.trainer.settings import TrainerSettings
from services.trainer.worker import run_local
from tests.contract.dashboard_pages import signed_in
from tests.contract.gateway import Gateway, make_gateway
from tests.trainer_fakes import FakeCluster, FakeSelections, run_group
from tlm_core.training.stage import Stage

TOPICS = {
    "weather": ["rain", "cloud", "storm", "wind", "thunder", "sunshine", "fog", "snow"],
    "kitchen": ["oven", "knife", "pepper", "onion", "butter", "simmer", "roast", "flour"],
}
COMMON = ["the", "a", "of", "and", "with", "near", "under", "some", "old", "every"]
SET = {
    "model.layers": 2, "model.hidden": 32, "model.heads": 4, "model.intermediate": 48, "model.max_length": 32,
    "tokenizer.vocab_size": 300, "finetune.epochs": 2, "finetune.evaluations": 2, "joint.enabled": False,
    "selection.selector": "none", "finetune.optimizer.lr": 0.003, "precision": "fp32",
}  # fmt: skip
LSTM = {"layers": 1, "hidden": 16, "embedding": 16, "lr": 0.02}
TEXTS = ["rain and cloud with storm", "the oven near some butter"]


class Service:
    """A gateway and its coordinator. `finished` runs the workers."""

    def __init__(self, gateway: Gateway, client: TestClient, root: Path) -> None:
        self.client, self.root, self.browser = client, root, signed_in(gateway)
        self.store, self.artifacts, self.cluster = gateway.parts.jobs, gateway.parts.artifacts, FakeCluster()
        settings = TrainerSettings(storage=str(root / "storage"), scratch=root / "trainer", lease_seconds=60.0)
        self.executor = ThreadPoolExecutor(1)
        self.coordinator = Coordinator(
            self.store, self.artifacts, FakeSelections(self.artifacts, root), self.cluster, settings, owner="a",
            local=LocalThreads(
                functools.partial(run_local, self.artifacts, root / "trainer"), lambda: self.executor
            ),
        )  # fmt: skip

    def dataset(self, name: str) -> None:
        rng = random.Random(name)
        files = {}
        for split, rows in (("train", 60), ("validation", 20), ("test", 30)):
            lines = []
            for _ in range(rows):
                topic = rng.choice(list(TOPICS))
                words = [rng.choice(TOPICS[topic] if rng.random() < 0.4 else COMMON) for _ in range(12)]
                lines.append(json.dumps({"text": " ".join(words), "label": topic}))
            files[split] = (f"{split}.jsonl", "\n".join(lines))
        assert self.client.post("/v1/datasets", data={"name": name}, files=files).status_code == 201

    def finished(self, **spec: Any) -> dict[str, Any]:
        """Submit a job, run it, and return it when it has ended."""
        defaults = {} if "job" in spec.get("options", {}) else {"dataset": "topics", "overrides": SET}
        answer = self.client.post("/v1/jobs", json=defaults | spec)
        assert answer.status_code == 202, answer.text
        job = answer.json()["id"]
        for _ in range(400):
            self.coordinator.round()
            record: dict[str, Any] = self.client.get(f"/v1/jobs/{job}").json()
            if record["state"] in ("succeeded", "failed"):
                return record
            self._work()
            time.sleep(0.01)
        raise AssertionError(f"The job does not end: {record}")

    def _work(self) -> None:
        for submission, status in list(self.cluster.statuses.items()):
            if status is Status.RUNNING:
                assignment = self.cluster.assignment(submission)
                run_group(self.store, self.artifacts, self.root / "worker", assignment, Stage.load)
                self.cluster.statuses[submission] = Status.ENDED

    def report(self, job: str) -> dict[str, Any]:
        report: dict[str, Any] = self.client.get(f"/v1/jobs/{job}/report").json()
        return report

    def open_results(self, *jobs: str) -> None:
        """Open the results of studies, and compare them."""
        paths = [f"/ui/jobs/{job}/results" for job in jobs] + [f"/ui/compare?{'&'.join(f'id={job}' for job in jobs)}"]
        for path in paths:
            assert self.browser.get(path).status_code == 200, path

    def predicted(self, job: str) -> list[str]:
        answer = self.client.post(f"/v1/models/{job}/predict", json={"texts": TEXTS})
        assert answer.status_code == 200, answer.text
        return [prediction["label"] for prediction in answer.json()["data"]]


@pytest.fixture
def service(redis_client: redis.Redis, tmp_path: Path) -> Iterator[Service]:
    torch.set_num_threads(1)
    gateway = make_gateway(redis_client, tmp_path)
    with gateway.test_client() as client:
        service = Service(gateway, client, tmp_path)
        service.dataset("topics")
        yield service
        service.executor.shutdown()


def test_learning_curve_has_report_and_predicting_bilstm(service: Service) -> None:
    options = {"sizes": [0.02, 0.3, 1], "models": ["bilstm", "encoder"], "lstm": LSTM}
    job = service.finished(kind="learning_curve", options=options, seeds=[0, 1])
    assert job["state"] == "succeeded", job["error"]
    submitted = [e.data["group"] for e in service.store.events("default", job["id"]) if e.type == "workers.submitted"]
    assert sorted(submitted[:-1]) == ["main", "seed.s0", "seed.s1"] and submitted[-1] == "gather"
    report = service.report(job["id"])
    assert list(report["models"]) == ["bilstm", "encoder", "linear"]
    assert report["sizes"] == [18, 60] and report["dropped"][0]["rows"] == 1
    assert "The size of 1 labels was dropped" in report["words"]
    assert set(service.predicted(job["id"])) <= set(TOPICS)
    files = {file["name"] for file in service.client.get(f"/v1/jobs/{job['id']}/model").json()["files"]}
    assert {"plot.svg", "curves.csv", "model.onnx", "report.json"} <= files
    service.open_results(job["id"])


def test_pruned_model_with_wall_clock_budget_shares_its_ticket(service: Service) -> None:
    clocked = SET | {"joint.enabled": True, "joint.budget.seconds": 0.5}
    first = service.finished(seeds=[0], overrides=clocked)
    assert first["state"] == "succeeded", first["error"]
    job = service.finished(kind="prune", options={"job": first["id"], "levels": [0.25], "tickets": ["winning"]})
    assert job["state"] == "succeeded", job["error"]
    started = [e.data["node"] for e in service.store.events("default", job["id"]) if e.type == "stage.started"]
    assert sorted(started) == ["evaluate", "importance.s0", "phases", "ticket.winning.l0.25.s0"]
    dense, trained = service.report(job["id"])["dense"], service.report(first["id"])["models"]["encoder"]
    assert dense["mean"]["validation"] == trained["mean"]["validation"]
    mask = service.client.get(f"/v1/jobs/{job['id']}/model/files/mask.json").json()
    service.dataset("more")
    share = {"others": ["more"], "level": 0.25, "tickets": {"more": mask}}
    shared = service.finished(kind="share_tickets", options=share, seeds=[0])
    assert shared["state"] == "succeeded", shared["error"]
    service.open_results(job["id"], shared["id"])
    answer = service.client.get(f"/v1/jobs/compare?ids={job['id']},{shared['id']}").json()
    assert all({"linear"} < {model["name"] for model in outcome["models"]} for outcome in answer["outcomes"])


def test_invalid_requests_are_rejected_at_submission(service: Service) -> None:
    requests: list[tuple[dict[str, Any], str]] = [
        ({"kind": "prune", "options": {"levels": [0.9]}}, "at most 6 heads"),
        ({"kind": "learning_curve"}, "need a corpus and a joint stage"),
        ({"kind": "share_tickets", "options": {"others": ["nowhere"]}}, "nowhere"),
        ({"kind": "share_tickets"}, "/options/others"),
    ]
    for spec, message in requests:
        answer = service.client.post("/v1/jobs", json={"dataset": "topics", "overrides": SET, **spec})
        assert answer.status_code in (404, 422, 400), answer.text
        assert message in answer.text
