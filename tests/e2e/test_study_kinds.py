"""Learning curve, pruning and ticket sharing over HTTP, with a very small model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_whole_way import SPEC, Stack, make_data, running
from tlm_core.jobs.spec import JobSpec
from tlm_core.training.recipe import resolve

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(600)]

SMALL: dict[str, Any] = SPEC | {
    "overrides": SPEC["overrides"] | {"joint.budget.steps": 20, "finetune.epochs": 2, "finetune.evaluations": 2},
    "seeds": (0,),
}
PRUNE = {"levels": [0.25, 0.5], "tickets": ["winning", "losing"]}
LSTM = {"layers": 1, "hidden": 16, "embedding": 16, "lr": 0.01}
TEXTS = ["rain and cloud with storm", "the oven near some butter"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    data = tmp_path_factory.mktemp("data")
    make_data(data)
    with running(tmp_path_factory.mktemp("stack"), data) as stack:
        parts = {name: data / f"{name}.jsonl" for name in ("train", "validation", "test")}
        stack.client.add_dataset("topics2", parts)
        yield stack


def finished(stack: Stack, **spec: Any) -> tuple[str, dict[str, Any]]:
    job = stack.client.wait(stack.client.submit(JobSpec(**(SMALL | spec))).id)
    assert job.state == "succeeded", job.error
    return job.id, stack.client.report(job.id)


def test_a_learning_curve_ends_in_a_report_and_a_bilstm_that_predicts(stack: Stack) -> None:
    options = {"sizes": [2, 40, 120], "models": ["bilstm", "encoder", "tlm"], "lstm": LSTM}
    job, report = finished(stack, kind="learning_curve", options=options)
    assert report["sizes"] == [40, 120] and report["dropped"][0]["rows"] == 2
    assert set(report["against"]) == {"encoder", "tlm"} and report["words"]
    found = stack.client.predict(job, TEXTS)
    assert {one.label for one in found} <= {"weather", "kitchen", "harbour"}
    files = {file.name for file in stack.client.model(job)}
    assert {"plot.svg", "curves.csv", "model.onnx", "report.json"} <= files


def test_pruning_takes_the_dense_model_from_the_cache_and_ends_in_a_smaller_one(stack: Stack, tmp_path: Path) -> None:
    _, dense = finished(stack, kind="train")
    job, report = finished(stack, kind="prune", options=PRUNE)
    assert report["dense"]["mean"] == dense["mean"]
    assert stack.events(job, "stage.started")[0].data["node"] == "importance.s0"
    assert report["inference"]["sliced"]["bytes"] < report["inference"]["dense"]["bytes"]
    assert len(stack.client.predict(job, TEXTS)) == 2
    stack.client.download(job, tmp_path / "model")
    from transformers import AutoModelForSequenceClassification

    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "model" / "model").num_labels == 3


def test_of_two_rates_the_one_that_was_there_is_taken_and_validation_chooses(stack: Stack) -> None:
    _, before = finished(stack, kind="train")
    rates = [resolve("fast", "tiny").finetune.optimizer.lr, 1e-7]
    job, report = finished(stack, kind="train", overrides=SMALL["overrides"] | {"finetune.rates": rates})
    began = [event.data["node"] for event in stack.events(job, "stage.started")]
    assert began == ["finetune.s0.lr1e-07", "finetune.s0", "evaluate", "export"]
    (entry,) = report["seeds"]
    assert entry["chosen"]["score"] == max(one["score"] for one in entry["tries"])
    assert report["cost"]["finetune"]["flops"] == pytest.approx(2 * before["cost"]["finetune"]["flops"])
    assert len(stack.client.predict(job, TEXTS)) == 2


def test_sharing_compares_three_systems(stack: Stack) -> None:
    found, _ = finished(stack, kind="prune", options=PRUNE)
    options = {"others": ["topics2"], "level": 0.25, "tickets": {"topics": found}}
    job, report = finished(stack, kind="share_tickets", options=options)
    assert [task["name"] for task in report["tasks"]] == ["topics", "topics2"]
    assert set(report["average"]) == {"alone", "multi_task", "tickets"} and report["words"]
    nodes = {event.data["node"] for event in stack.events(job, "stage.started")}
    assert "importance.1.s0" in nodes and "importance.0.s0" not in nodes, "the first task's ticket is a job's"
