"""Pruning from its plan to its report, on a generated task."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests.unit.studies.local_plan import check_resume, make_job, read_report, run_plan
from tests.unit.training.made import made_task, tiny
from tests.unit.training.test_published import published
from tests.unit.training.test_regression import made_regression
from tlm_core.compression import ticket_stages
from tlm_core.compression.masks import Importance, Mask, Which, one_shot
from tlm_core.compression.params import CheckEncoderParams, ImportanceParams
from tlm_core.compression.sliced import load_sliced
from tlm_core.errors import InvalidRecipe, InvalidRequest
from tlm_core.evaluation.summary import sentences
from tlm_core.jobs.plan import Node, plan_of
from tlm_core.kinds.share_tickets import ShareTicketsOptions
from tlm_core.serving import load_model
from tlm_core.stages import CHECK_ENCODER, IMPORTANCE
from tlm_core.tasks.metrics import score
from tlm_core.tasks.task import Task
from tlm_core.training.local import LocalReporter, run_stage
from tlm_core.training.prepared import Batch, Prepared, task_batch
from tlm_core.training.stage import StopRequested
from tlm_core.training.state import read_history

RECIPE = tiny(joint__budget__steps=8, finetune__epochs=2, finetune__evaluations=2, precision="fp32", model__heads=4)
JOB = make_job(RECIPE, kind="prune", seeds=(0, 1), options={"levels": [0.25, 0.5], "tickets": ["winning", "losing"]})
TRACE = "trace-finetune.json.gz"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("prune")

    def add_trace(node: Node, out: Path) -> None:
        if node.stage.name == "ticket":
            (out / TRACE).write_text(node.name)

    return run_plan(JOB, made_task(folder / "task", (90, 40, 60)), folder / "run", add_trace)


@pytest.fixture
def report(done: Mapping[str, Path]) -> dict[str, Any]:
    return read_report(done["phases"])


def test_masks_follow_importance_of_their_seed(done: Mapping[str, Path]) -> None:
    tickets: tuple[Which, ...] = ("winning", "losing")
    for seed in (0, 1):
        scores = Importance.from_dict(json.loads((done[f"importance.s{seed}"] / "importance.json").read_text()))
        for which in tickets:
            model, mask = load_sliced(done[f"ticket.{which}.l0.5.s{seed}"])
            assert mask == one_shot(scores, 0.5, which, seed)
            assert model.encoder.layers[0].attention.heads == sum(mask.heads[0])  # type: ignore[union-attr]


def test_export_contains_traces_of_super_ticket(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    super_ticket = f"ticket.winning.l{report['super_ticket']['level']:g}.s{report['best_seed']}"
    assert (done["phases"] / TRACE).read_text() == super_ticket


def test_interrupted_ticket_equals_uninterrupted_one(
    done: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_resume(plan_of(JOB).node("ticket.losing.l0.5.s1"), done, tmp_path, monkeypatch)


def test_stopped_importance_starts_again(done: Mapping[str, Path], tmp_path: Path) -> None:
    inputs = {"prepared": done["prepare"], "finetune": done["finetune.s0"]}
    stop = LocalReporter(should_continue_at=lambda step: step < 64)
    with pytest.raises(StopRequested, match="starts again on resume"):
        run_stage(IMPORTANCE, inputs, ImportanceParams(as_published=False), tmp_path / "first", stop)
    assert stop.steps == [32, 64] and not list((tmp_path / "first").iterdir())
    out = run_stage(IMPORTANCE, inputs, ImportanceParams(as_published=False), tmp_path / "second")
    assert (out / "importance.json").read_bytes() == (done["importance.s0"] / "importance.json").read_bytes()


def test_ticket_costs_less_than_dense_model(done: Mapping[str, Path]) -> None:
    flops = [
        json.loads((done[name] / "history.json").read_text())["cost"]["flops"]
        for name in ("finetune.s0", "ticket.winning.l0.25.s0", "ticket.winning.l0.5.s0")
    ]
    assert flops[0] > flops[1] > flops[2]


def test_flops_of_a_ticket_do_not_depend_on_the_number_of_workers(
    done: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tuned(*_: object, flops: Callable[[Batch], float]) -> dict[str, object]:
        prepared = Prepared(done["prepare"])
        alone, shared = (
            task_batch(prepared.split("train"), np.arange(60), prepared, share=share)
            for share in (None, lambda rows: (0, rows // 3))
        )
        assert len(shared.rows) < len(alone.rows) and flops(shared) == flops(alone) > 0
        return {}

    monkeypatch.setattr(ticket_stages, "tune", tuned)
    node = plan_of(JOB).node("ticket.winning.l0.5.s0")
    run_stage(node.stage, {name: done[source] for name, source in node.inputs.items()}, node.params, tmp_path / "out")


def test_curves_contain_every_ticket_and_dense_model(report: dict[str, Any]) -> None:
    points = [(point["ticket"], point["level"]) for point in report["curves"]]
    assert points == [("dense", 0.0), ("winning", 0.25), ("winning", 0.5), ("losing", 0.25), ("losing", 0.5)]
    left = [point["weights_left"] for point in report["curves"]]
    assert left[0] == 1.0 > left[1] > left[2] > 0


def test_table_and_plot_contain_the_points_of_the_report(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    with open(done["phases"] / "curves.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    linear = rows.pop()
    for row, point in zip(rows, report["curves"], strict=True):
        assert (row["ticket"], float(row["level"])) == (point["ticket"], point["level"])
        assert (float(row["weights_left"]), float(row["mean"])) == (point["weights_left"], point["mean"])
        assert list(map(float, row["validation"].split())) == point["validation"]
    root = ElementTree.parse(done["phases"] / "plot.svg").getroot()
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == len(rows)
    assert (linear["ticket"], linear["level"], linear["spread"]) == ("linear", "", "")
    assert float(linear["mean"]) == report["models"]["linear"]["mean"]["validation"]["macro_f1"]
    assert "linear" in {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}


def test_linear_model_is_reported_beside_the_ticket(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    score = read_report(done["evaluate"])["models"]["linear"]["mean"]["test"]["macro_f1"]
    assert report["models"]["linear"]["mean"]["test"]["macro_f1"] == score
    assert f"The linear model has {score:.4f}." in report["words"]
    assert report["gain"]["value"] == pytest.approx(report["mean"]["test"]["macro_f1"] - score)
    assert report["gain"]["low"] <= report["gain"]["value"] <= report["gain"]["high"]
    assert report["words"].endswith(report["gain"]["words"]) and "the super ticket is" in report["gain"]["words"]
    assert report["gain"]["words"] not in sentences(report), "The summary already states it."


def test_cost_of_the_whole_job_includes_dense_model_and_tickets(
    done: Mapping[str, Path], report: dict[str, Any]
) -> None:
    tickets = [read_history(folder)["cost"]["seconds"] for name, folder in done.items() if name.startswith("ticket.")]
    dense = read_report(done["evaluate"])["cost"]
    assert len(tickets) == 8 and set(dense) >= {"baseline", "prepare", "joint", "finetune"}
    assert report["cost"]["total"]["seconds"] == pytest.approx(dense["total"]["seconds"] + sum(tickets))
    assert report["gain"]["seconds"] == report["cost"]["total"]["seconds"]
    assert "The whole job took" in report["words"] and "on the clock" not in report["words"]


def test_super_ticket_is_best_winning_ticket_on_validation(report: dict[str, Any]) -> None:
    winning = [point for point in report["curves"] if point["ticket"] == "winning"]
    best = max(point["mean"] for point in winning)
    chosen = next(p for p in winning if p["level"] == report["super_ticket"]["level"])
    assert chosen["mean"] == best
    assert len(report["seeds"]) == 2 and "dense" in report


def test_exported_model_is_smaller_and_has_reported_scores(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    sizes = report["inference"]
    assert sizes["sliced"]["bytes"] < sizes["dense"]["bytes"]
    task = Task.read(done["validate"])
    predicted = load_model(done["phases"]).probabilities(task.texts("test")).argmax(axis=1)
    best = next(entry for entry in report["seeds"] if entry["seed"] == report["best_seed"])
    scores = score(task.label_ids("test"), predicted, 3, "macro_f1")
    assert scores["macro_f1"] == pytest.approx(best["test"]["macro_f1"], abs=1e-4)


def test_stock_weights_of_masked_heads_are_zero(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    mask = Mask.from_dict(report["super_ticket"]["mask"])
    weights = load_file(done["phases"] / "model" / "model.safetensors")
    for layer, heads in enumerate(mask.heads):
        columns = weights[f"model.layers.{layer}.attn.Wo.weight"].view(32, 4, 8).abs().sum(dim=(0, 2)).numpy()
        np.testing.assert_array_equal(columns > 0, heads)


def test_model_card_describes_pruning_and_total_cost(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    card = (done["phases"] / "model" / "README.md").read_text()
    ticket = report["super_ticket"]
    assert f"the least important {ticket['level']:.0%} of its attention heads" in card
    assert f"holds the remaining {ticket['left']:,} parameters" in card
    assert f"size ({ticket['full']:,}), with zeros for the removed parts" in card
    stages = ("prepare", "joint", "finetune")
    flops = [report["dense"]["cost"][stage]["flops"] for stage in stages] + [report["cost"]["tickets"]["flops"]]
    assert f"| tickets | {flops[-1]:.3g} |" in card and f"| total | {sum(flops):.3g} |" in card


def test_mask_file_is_a_valid_ticket_for_sharing(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    mask = json.loads((done["phases"] / "mask.json").read_text(encoding="utf-8"))
    assert mask == report["super_ticket"]["mask"]
    assert ShareTicketsOptions(others=("b",), tickets={"b": mask}).ticket("b") == Mask.from_dict(mask)


def test_level_that_empties_a_layer_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match="at most 6 heads"):
        one_shot(Importance(np.ones((2, 4)), np.ones(2)), 0.9, "winning")


def test_undefined_validation_score_selects_sparsest_ticket_without_plot(tmp_path: Path) -> None:
    task = Task.read(made_regression(tmp_path / "original", (32, 12, 16)))
    same = task.splits["validation"].drop_columns("label").append_column(
        task.splits["validation"].schema.field("label"), pa.array(np.full(task.counts["validation"], 2000.0))
    )  # fmt: skip
    replace(task, splits={**task.splits, "validation": same}).write(tmp_path / "task")
    recipe = tiny(joint__enabled=False, selection__selector="none", finetune__epochs=1, finetune__evaluations=1,
                  precision="fp32", model__heads=4)  # fmt: skip
    job = make_job(recipe, kind="prune", seeds=(0,), options={"levels": [0.25, 0.5], "tickets": ["winning"]})
    done = run_plan(job, tmp_path / "task", tmp_path / "run")
    report = read_report(done["phases"])
    assert [(point["mean"], "reason" in point) for point in report["curves"]] == [(None, True)] * 3
    assert report["super_ticket"]["level"] == 0.5 and not (done["phases"] / "plot.svg").exists()
    assert "validation has no score to select by" in report["words"]
    predicted = load_model(done["phases"]).probabilities(task.texts("test"))
    assert np.all((predicted > 1980) & (predicted < 2030)), "a ticket predicts raw targets"


def test_published_encoder_is_pruned_at_rates_that_validation_selects(
    tmp_path: Path,
) -> None:
    source, rates = str(published(tmp_path / "published", "Bert")), (1e-3, 1e-4)
    recipe = tiny(model__init=source, tokenizer__source=source, joint__enabled=False, selection__selector="none",
                  finetune__max_steps=4, finetune__evaluations=1, finetune__rates=rates, precision="fp32")  # fmt: skip
    job = make_job(recipe, kind="prune", seeds=(0,), options={"levels": [0.25], "tickets": ["winning"]})
    done = run_plan(job, made_task(tmp_path / "task", (40, 20, 20)), tmp_path / "run")
    report = read_report(done["phases"])
    history = {name: json.loads((done[name] / "history.json").read_text())
               for name in done if name.startswith(("finetune.", "ticket."))}  # fmt: skip
    for name in ("finetune", "ticket.winning.l0.25"):
        tries = [history[f"{name}.s0.lr{rate:g}"] for rate in rates]
        chosen = history[f"{name}.s0"]["best"]
        assert chosen["score"] == max(entry["best"]["score"] for entry in tries) and chosen["lr"] in rates
    costs = {key: sum(entry["cost"]["flops"] for name, entry in history.items() if key in name and ".lr" in name)
             for key in ("finetune", "ticket")}  # fmt: skip
    assert report["dense"]["cost"]["finetune"]["flops"] == pytest.approx(costs["finetune"])
    assert report["cost"]["tickets"]["flops"] == pytest.approx(costs["ticket"])
    assert report["seeds"][0]["chosen"]["lr"] in rates
    assert (done["ticket.winning.l0.25.s0"] / "mask.json").exists()
    stock = AutoModelForSequenceClassification.from_pretrained(str(done["phases"] / "model"))
    assert type(stock).__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize(
    ("over", "message"),
    [({"levels": [0.5, 0.95]}, "at most 6 heads"), ({"masks": [Mask.full(2, 3).as_dict()]}, "the model has 2 x 4")],
)
def test_tickets_that_do_not_fit_published_encoder_are_rejected(
    tmp_path: Path, over: dict[str, Any], message: str
) -> None:
    config = {"model_type": "bert", "vocab_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4,
              "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config))
    params = CheckEncoderParams(init=str(tmp_path / "encoder"), levels=(0.5,))
    run_stage(CHECK_ENCODER, {}, params, tmp_path / "fits")
    with pytest.raises(InvalidRequest, match=message):
        run_stage(CHECK_ENCODER, {}, CheckEncoderParams(**(params.model_dump() | over)), tmp_path / "refused")
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(InvalidRecipe, match="'gpt2' model"):
        run_stage(CHECK_ENCODER, {}, params, tmp_path / "other")
