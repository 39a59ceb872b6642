"""A regression task goes through all stages and yields a stock model with one output; further tests are reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from onnx import numpy_helper
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.unit.training.made import TELLING, made_task, report_of, run_chain, tiny
from tlm_core.evaluation.combine import Scales
from tlm_core.evaluation.report import over_seeds
from tlm_core.linear.model import LinearModel
from tlm_core.serving import load_model
from tlm_core.tasks.metrics import score
from tlm_core.tasks.task import Task, task_schema
from tlm_core.tasks.types import TASK_TYPES
from tlm_core.training.architectures import Shape
from tlm_core.training.graph import Graph, encoder_outputs
from tlm_core.training.model import TaskModel
from tlm_core.training.objective import LOSSES
from tlm_core.training.state import compact_weights, weights


def made_regression(folder: Path, counts: tuple[int, int, int] = (64, 24, 30), least: float = 1990) -> Path:
    """Each text's amount, by default a year, is `least` and 30 times the share of its words of the first kind."""
    random = np.random.default_rng(0)
    splits = {}
    for name, count in zip(("train", "validation", "test"), counts, strict=True):
        shares = random.random(count)
        texts = [" ".join(TELLING[int(random.random() > share)][0] for _ in range(20)) for share in shares]
        columns = {"row": np.arange(1, count + 1), "text": texts, "label": least + 30 * shares}
        splits[name] = pa.table(columns, schema=task_schema(False, "pearson"))
    Task("regression", ("similarity",), "pearson", False, "en", splits).write(folder)
    return folder


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_stock_class_and_gateway_predict_the_same_targets(architecture: str, tmp_path: Path) -> None:
    recipe = tiny(
        selection__selector="none", model__architecture=architecture, precision="fp32", finetune__epochs=12,
    )  # fmt: skip
    done = run_chain(made_regression(tmp_path / "task"), None, recipe, [0], tmp_path / "work")
    report = report_of(done)
    assert not {"calibration", "risk_coverage", "suspects"} & set(report)
    assert report["metric"] == "pearson" and report["mean"]["test"]["accuracy"] is None
    if architecture == "modernbert":  # post-norm learns nothing in so few steps
        assert report["mean"]["test"]["pearson"] > 0.6 and report["mean"]["test"]["spearman"] > 0.6
    history = json.loads((done["finetune.s0"] / "history.json").read_text())
    assert all(0 < entry["loss"] < 2 for entry in history["evaluations"]), "predicting the mean has a loss of 1"
    assert all(0 < point["task"] < 3 for point in history["points"])
    assert report["majority"]["test"]["value"] is None and report["majority"]["test"]["reason"]
    folder = done["export"] / "model"
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    assert stock.config.problem_type == "regression" and stock.config.num_labels == 1
    texts = [f"{TELLING[0][0]} " * 12, f"{TELLING[1][0]} " * 12]
    with torch.inference_mode():
        expected = stock(**AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt")).logits.numpy()
    model = load_model(done["export"])
    assert model.labels == ("similarity",)
    predicted = model.probabilities(texts)
    returned, scales = report["returned"]["model"], Scales(**report["seeds"][0]["scales"])
    linear = LinearModel.read(done["refit_linear"] / "linear").outputs([(text,) for text in texts])
    np.testing.assert_allclose(predicted, scales.combine(TASK_TYPES["regression"], linear, expected), rtol=1e-5)
    assert np.all((predicted > 1980) & (predicted < 2030))
    if architecture == "modernbert" or returned == "linear":
        assert predicted[0, 0] - predicted[1, 0] > 10
    card = (folder / "README.md").read_text()
    assert "Pearson correlation" in card and "macro-F1" not in card and "'similarity'" in card


def test_ensemble_predicts_targets_beyond_half_precision(tmp_path: Path) -> None:
    recipe = tiny(selection__selector="none", joint__enabled=False, precision="fp32", finetune__epochs=1)
    task = made_regression(tmp_path / "task", least=250_000)
    done = run_chain(task, None, recipe, [0, 1], tmp_path / "work")
    predicted = load_model(done["export"]).probabilities(Task.read(task).texts("test"))
    np.testing.assert_allclose(predicted, 250_015, atol=60)
    stock = AutoModelForSequenceClassification.from_pretrained(done["export"] / "model")
    assert torch.isfinite(stock.classifier.bias).all()


@pytest.mark.parametrize(("mean", "deviation"), [(40_013.0, 1.0), (2e-8, 1e-9)])
def test_compact_weights_store_the_output_layer_exactly(mean: float, deviation: float) -> None:
    shape = Shape(architecture="bert", vocab=8, labels=1, layers=1, hidden=8, heads=1, intermediate=8, max_length=8)
    tensors = weights(TaskModel(shape))
    tensors |= {"task.out.weight": deviation * torch.rand(1, 8), "task.out.bias": torch.tensor([mean])}
    compact = compact_weights(tensors)
    graph = Graph()
    encoder_outputs(graph, shape, [{name: tensor.float().numpy() for name, tensor in compact.items()}] * 2)
    stored = [numpy_helper.to_array(constant).ravel().tolist() for constant in graph.constants]
    for name in ("task.out.weight", "task.out.bias"):
        assert torch.equal(compact[name], tensors[name])
        assert stored.count(tensors[name].ravel().tolist()) == 2


def test_additional_test_split_is_reported(tmp_path: Path) -> None:
    task = Task.read(made_task(tmp_path / "plain", (40, 12, 20)))
    more = Task("more", task.labels, "matthews", False, "en", {**task.splits, "test_other": task.splits["validation"]})
    more.write(tmp_path / "task")
    recipe = tiny(joint__enabled=False, selection__selector="none", finetune__epochs=1, finetune__evaluations=1)
    done = run_chain(tmp_path / "task", None, recipe, [0], tmp_path / "work")
    report = report_of(done)
    (seed,) = report["seeds"]
    assert seed["test_other"]["rows"] == 12 and seed["test_other"]["value"] == seed["validation"]["value"]
    assert report["mean"]["test_other"]["matthews"] == seed["validation"]["matthews"]
    card = (done["export"] / "model" / "README.md").read_text()
    assert "Matthews correlation" in card and "| test_other, returned model |" in card.replace("\\", "")


@pytest.mark.parametrize(("seeds", "reason"), [(3, None), (1, "one run has no spread")])
def test_regression_spread_has_no_reason_from_class_scores(seeds: int, reason: str | None) -> None:
    targets = np.array([1.0, 2.0, 4.0])
    repeated = np.zeros(3, dtype=bool)
    scores = [score(targets, targets**number, 1, "pearson", repeated=repeated) for number in range(1, seeds + 1)]
    spread = over_seeds([{"seed": number, "test": entry} for number, entry in enumerate(scores)])["spread"]
    assert (spread["test"]["pearson"] is None) == (seeds == 1) and spread.get("reason") == reason


def test_regression_loss_is_the_sum_of_squared_errors() -> None:
    loss = LOSSES["mse"](torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 5.0]))
    assert float(loss) == 1.0 + 4.0
