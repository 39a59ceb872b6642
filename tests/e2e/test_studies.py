"""Learning curve, pruning, rates and ticket sharing over HTTP, with a very small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import SPLITS, Stack, make_spec
from tlm_core.errors import NotFound
from tlm_core.training.recipe import resolve

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(600)]

PRUNE = {"levels": [0.25, 0.5], "tickets": ["winning", "losing"]}
LSTM = {"layers": 1, "hidden": 16, "embedding": 16, "lr": 0.01}
TEXTS = ["rain and cloud with storm", "the oven near some butter"]


def finish(stack: Stack, overrides: dict[str, Any] | None = None, **fields: Any) -> tuple[str, dict[str, Any]]:
    """Run a job with a short joint stage, and return its id and report."""
    job = stack.finish(make_spec({"joint.budget.steps": 20, "finetune.epochs": 2, **(overrides or {})}, **fields))
    assert job.state == "succeeded", job.error
    return job.id, stack.client.report(job.id)


def test_learning_curve_exports_a_bilstm_that_predicts(embedded: Stack) -> None:
    options = {"sizes": [2, 40], "models": ["bilstm", "encoder", "tlm"], "lstm": LSTM}
    job, report = finish(embedded, kind="learning_curve", options=options)
    assert report["sizes"] == [40] and report["dropped"][0]["rows"] == 2
    assert set(report["against"]) == {"encoder", "tlm"} and report["words"]
    predictions = embedded.client.predict(job, TEXTS)
    assert {prediction.label for prediction in predictions.data} <= {"weather", "kitchen", "harbour"}
    files = {file.name for file in embedded.client.model(job).files}
    assert {"plot.svg", "curves.csv", "model.onnx", "report.json"} <= files


def test_pruning_reuses_the_dense_model_and_exports_a_smaller_one(embedded: Stack, tmp_path: Path) -> None:
    _, dense = finish(embedded)
    job, report = finish(embedded, kind="prune", options=PRUNE)
    assert report["dense"]["mean"]["validation"] == dense["models"]["encoder"]["mean"]["validation"]
    started = embedded.started_nodes(job)
    assert started[:2] == ["evaluate", "importance.s0"] and len(started) == 2 + 4 + 1
    assert report["inference"]["sliced"]["bytes"] < report["inference"]["dense"]["bytes"]
    assert len(embedded.client.predict(job, TEXTS).data) == 2
    embedded.client.download(job, tmp_path / "model")
    from transformers import AutoModelForSequenceClassification

    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "model" / "model").num_labels == 3


def test_validation_chooses_among_rates_and_reuses_a_known_one(embedded: Stack) -> None:
    _, single = finish(embedded)
    rates = [resolve("fast", "tiny").finetune.optimizer.lr, 1e-7]
    job, report = finish(embedded, {"finetune.rates": rates})
    assert embedded.started_nodes(job) == ["finetune.s0.lr1e-07", "finetune.s0", "refit.s0", "evaluate", "export"]
    (entry,) = report["seeds"]
    assert entry["chosen"]["score"] == max(attempt["score"] for attempt in entry["tries"])
    assert report["cost"]["finetune"]["flops"] == pytest.approx(2 * single["cost"]["finetune"]["flops"])
    assert len(embedded.client.predict(job, TEXTS).data) == 2


def test_ticket_sharing_compares_three_systems(embedded: Stack, data: Path) -> None:
    embedded.client.add_dataset("topics2", {split: data / f"{split}.jsonl" for split in SPLITS})
    prune_job, _ = finish(embedded, kind="prune", options=PRUNE)
    options = {"others": ["topics2"], "level": 0.25, "tickets": {"topics": prune_job}}
    job, report = finish(embedded, kind="share_tickets", options=options)
    assert [task["name"] for task in report["tasks"]] == ["topics", "topics2"]
    assert set(report["average"]) == {"majority", "alone", "multi_task", "tickets", "linear"} and report["words"]
    with pytest.raises(NotFound, match="has no stage 'export'"):
        embedded.client.predict(job, TEXTS)
    nodes = embedded.started_nodes(job)
    assert "importance.1.s0" in nodes and "importance.0.s0" not in nodes, "the first ticket comes from a job"
