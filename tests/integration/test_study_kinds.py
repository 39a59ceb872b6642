"""Learning curve, pruning and ticket sharing from the request to the prediction, with real stages; Ray is played."""

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
from services.trainer.local import run_local
from services.trainer.settings import TrainerSettings
from tests.contract.gateway import Gateway, make_gateway
from tests.trainer_fakes import FakeCluster, FakeSelections, run_group
from tlm_core.stages import Stage

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
    """A gateway, and the trainer behind it, whose workers run when `drive` comes to them."""

    def __init__(self, gateway: Gateway, client: TestClient, root: Path) -> None:
        self.client, self.root = client, root
        self.store, self.artifacts, self.cluster = gateway.parts.jobs, gateway.parts.artifacts, FakeCluster()
        settings = TrainerSettings(storage=str(root / "storage"), scratch=root / "trainer", lease_seconds=60.0)
        self.executor = ThreadPoolExecutor(1)
        self.coordinator = Coordinator(
            self.store, self.artifacts, FakeSelections(self.artifacts, root), self.cluster, settings, owner="a",
            local=functools.partial(run_local, self.artifacts, root / "trainer"), executor=self.executor,
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
        """The job when it is over."""
        brought = {} if "job" in spec.get("options", {}) else {"dataset": "topics", "overrides": SET}
        answer = self.client.post("/v1/jobs", json=brought | spec)
        assert answer.status_code == 202, answer.text
        job = answer.json()["id"]
        for _ in range(400):
            self.coordinator.round()
            found: dict[str, Any] = self.client.get(f"/v1/jobs/{job}").json()
            if found["state"] in ("succeeded", "failed"):
                return found
            self._work()
            time.sleep(0.01)
        raise AssertionError(f"the job does not end: {found}")

    def _work(self) -> None:
        for submission, status in list(self.cluster.statuses.items()):
            if status is Status.RUNNING:
                assignment = self.cluster.assignment(submission)
                run_group(self.store, self.artifacts, self.root / "worker", assignment, Stage.load)
                self.cluster.statuses[submission] = Status.ENDED

    def report(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/v1/jobs/{job}/report").json()
        return found

    def predicted(self, job: str) -> list[str]:
        answer = self.client.post(f"/v1/jobs/{job}/predict", json={"texts": TEXTS})
        assert answer.status_code == 200, answer.text
        return [one["label"] for one in answer.json()["data"]]


@pytest.fixture
def service(redis_client: redis.Redis, tmp_path: Path) -> Iterator[Service]:
    torch.set_num_threads(1)
    gateway = make_gateway(redis_client, tmp_path)
    with gateway.test_client() as client:
        service = Service(gateway, client, tmp_path)
        service.dataset("topics")
        yield service
        service.executor.shutdown()


def test_a_learning_curve_ends_in_a_report_and_a_bilstm_that_predicts(service: Service) -> None:
    options = {"sizes": [0.02, 0.3, 1], "models": ["bilstm", "encoder"], "lstm": LSTM}
    job = service.finished(kind="learning_curve", options=options, seeds=[0, 1])
    assert job["state"] == "succeeded", job["error"]
    submitted = [e.data["group"] for e in service.store.events("default", job["id"]) if e.type == "workers.submitted"]
    assert submitted == ["curve.s0", "curve.s1", "gather"]
    report = service.report(job["id"])
    assert report["sizes"] == [18, 60] and report["dropped"][0]["rows"] == 1
    assert "1 labels were left out" in report["words"]
    assert set(service.predicted(job["id"])) <= set(TOPICS)
    files = {file["name"] for file in service.client.get(f"/v1/jobs/{job['id']}/model").json()["files"]}
    assert {"plot.svg", "curves.csv", "model.onnx", "report.json"} <= files


def test_pruning_a_finished_job_takes_its_model_from_the_cache_and_leaves_a_smaller_one(service: Service) -> None:
    first = service.finished(seeds=[0])
    job = service.finished(kind="prune", options={"levels": [0.25, 0.5], "tickets": ["winning", "random"]}, seeds=[0])
    assert job["state"] == "succeeded", job["error"]
    started = [e.data["node"] for e in service.store.events("default", job["id"]) if e.type == "stage.started"]
    assert started[0] == "importance.s0" and len(started) == 1 + 4 + 1
    report = service.report(job["id"])
    assert report["dense"]["mean"] == service.report(first["id"])["mean"]
    assert report["inference"]["sliced"]["bytes"] < report["inference"]["dense"]["bytes"]
    assert set(service.predicted(job["id"])) <= set(TOPICS)


def test_the_model_of_a_job_that_ended_by_the_clock_is_pruned_and_its_ticket_is_shared(service: Service) -> None:
    clocked = SET | {"joint.enabled": True, "joint.budget.seconds": 0.5}
    first = service.finished(seeds=[0], overrides=clocked)
    assert first["state"] == "succeeded", first["error"]
    job = service.finished(kind="prune", options={"job": first["id"], "levels": [0.25], "tickets": ["winning"]})
    assert job["state"] == "succeeded", job["error"]
    started = [e.data["node"] for e in service.store.events("default", job["id"]) if e.type == "stage.started"]
    assert started == ["importance.s0", "ticket.winning.l0.25.s0", "phases"]
    assert service.report(job["id"])["dense"]["mean"] == service.report(first["id"])["mean"]
    mask = service.client.get(f"/v1/jobs/{job['id']}/model/files/mask.json").json()
    service.dataset("more")
    share = {"others": ["more"], "level": 0.25, "tickets": {"more": mask}}
    shared = service.finished(kind="share_tickets", options=share, seeds=[0])
    assert shared["state"] == "succeeded", shared["error"]


def test_sharing_compares_three_systems(service: Service) -> None:
    service.dataset("more")
    job = service.finished(kind="share_tickets", options={"others": ["more"], "level": 0.25}, seeds=[0])
    assert job["state"] == "succeeded", job["error"]
    report = service.report(job["id"])
    assert [task["name"] for task in report["tasks"]] == ["topics", "more"]
    assert service.client.post(f"/v1/jobs/{job['id']}/predict", json={"texts": TEXTS}).status_code == 404


def test_what_cannot_be_is_refused_at_once(service: Service) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"kind": "prune", "options": {"levels": [0.9]}}, "at most 6 heads"),
        ({"kind": "learning_curve"}, "retrieve from a corpus"),
        ({"kind": "share_tickets", "options": {"others": ["nowhere"]}}, "nowhere"),
        ({"kind": "share_tickets"}, "share_tickets.others"),
    ]
    for spec, complaint in asked:
        answer = service.client.post("/v1/jobs", json={"dataset": "topics", "overrides": SET, **spec})
        assert answer.status_code in (404, 422, 400), answer.text
        assert complaint in answer.text
