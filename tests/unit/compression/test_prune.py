"""Pruning from its plan to its report, on a made task."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from services.api.predict import load_model
from tests.unit.studies.local_plan import make_job, run_plan
from tests.unit.training.made import made_task, tiny
from tests.unit.training.test_published import published
from tests.unit.training.test_regression import made_regression
from tlm_core.compression.masks import Importance, Mask, one_shot
from tlm_core.compression.params import CheckEncoderParams, ImportanceParams
from tlm_core.compression.sliced import load_sliced
from tlm_core.errors import InvalidRecipe, InvalidRequest
from tlm_core.jobs.plan import plan_of
from tlm_core.kinds.prune import CHECK_ENCODER, IMPORTANCE, PHASES
from tlm_core.kinds.share_tickets import ShareTicketsOptions
from tlm_core.tasks.metrics import score
from tlm_core.tasks.task import Task
from tlm_core.training.local import LocalReporter, run_stage
from tlm_core.training.stage import StopRequested

RECIPE = tiny(joint__budget__steps=8, finetune__epochs=2, finetune__evaluations=2, precision="fp32", model__heads=4)
OPTIONS = {"levels": [0.25, 0.5], "tickets": ["winning", "losing"]}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("prune")
    task = made_task(folder / "task", (90, 40, 60))
    return run_plan(make_job(RECIPE, kind="prune", seeds=(0, 1), options=OPTIONS), task, folder / "run")


@pytest.fixture
def report(done: Mapping[str, Path]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done["phases"] / "report.json").read_text())
    return found


def test_tickets_are_cut_from_the_importance_of_their_own_seed(done: Mapping[str, Path]) -> None:
    for seed in (0, 1):
        found = Importance.from_dict(json.loads((done[f"importance.s{seed}"] / "importance.json").read_text()))
        for which in ("winning", "losing"):
            model, mask = load_sliced(done[f"ticket.{which}.l0.5.s{seed}"])
            assert mask == one_shot(found, 0.5, which, seed)
            assert model.encoder.layers[0].attention.heads == sum(mask.heads[0])  # type: ignore[union-attr]


def test_the_super_ticket_s_traces_are_beside_it(done: Mapping[str, Path], tmp_path: Path) -> None:
    node = plan_of(make_job(RECIPE, kind="prune", seeds=(0, 1), options=OPTIONS)).node("phases")
    inputs = {name: done[source] for name, source in node.inputs.items()}
    for name in [name for name in inputs if name.startswith("ticket.")]:
        inputs[name] = shutil.copytree(inputs[name], tmp_path / name)
        (inputs[name] / "trace-finetune.json.gz").write_text(name)
    out = run_stage(PHASES, inputs, node.params, tmp_path / "out")
    report = json.loads((out / "report.json").read_text())
    super_ticket = f"ticket.winning.l{report['super_ticket']['level']:g}.s{report['best_seed']}"
    assert (out / "trace-finetune.json.gz").read_text() == super_ticket


def test_importance_stops_when_asked_and_starts_anew(done: Mapping[str, Path], tmp_path: Path) -> None:
    inputs = {"prepared": done["prepare"], "finetune": done["finetune.s0"]}
    stop = LocalReporter(keep_going=lambda step: step < 64)
    with pytest.raises(StopRequested, match="start this stage anew"):
        run_stage(IMPORTANCE, inputs, ImportanceParams(as_published=False), tmp_path / "first", stop)
    assert stop.steps == [32, 64] and not list((tmp_path / "first").iterdir())
    out = run_stage(IMPORTANCE, inputs, ImportanceParams(as_published=False), tmp_path / "second")
    assert (out / "importance.json").read_bytes() == (done["importance.s0"] / "importance.json").read_bytes()


def test_a_ticket_costs_less_than_the_dense_model(done: Mapping[str, Path]) -> None:
    flops = [
        json.loads((done[name] / "history.json").read_text())["cost"]["flops"]
        for name in ("finetune.s0", "ticket.winning.l0.25.s0", "ticket.winning.l0.5.s0")
    ]
    assert flops[0] > flops[1] > flops[2]


def test_the_curves_hold_every_ticket_and_the_dense_model(report: dict[str, Any]) -> None:
    found = [(point["ticket"], point["level"]) for point in report["curves"]]
    assert found == [("dense", 0.0), ("winning", 0.25), ("winning", 0.5), ("losing", 0.25), ("losing", 0.5)]
    left = [point["weights_left"] for point in report["curves"]]
    assert left[0] == 1.0 > left[1] > left[2] > 0


def test_table_and_plot_hold_the_same_points(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    with open(done["phases"] / "curves.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, point in zip(rows, report["curves"], strict=True):
        assert (row["ticket"], float(row["level"])) == (point["ticket"], point["level"])
        assert (float(row["weights_left"]), float(row["mean"])) == (point["weights_left"], point["mean"])
        assert list(map(float, row["validation"].split())) == point["validation"]
    root = ElementTree.parse(done["phases"] / "plot.svg").getroot()
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == len(rows)


def test_the_super_ticket_is_the_best_winning_one_on_validation(report: dict[str, Any]) -> None:
    winning = [point for point in report["curves"] if point["ticket"] == "winning"]
    best = max(point["mean"] for point in winning)
    chosen = next(p for p in winning if p["level"] == report["super_ticket"]["level"])
    assert chosen["mean"] == best
    assert len(report["seeds"]) == 2 and "dense" in report


def test_the_export_is_smaller_and_scores_as_reported(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    sizes = report["inference"]
    assert sizes["sliced"]["bytes"] < sizes["dense"]["bytes"]
    task = Task.read(done["validate"])
    answers = load_model(done["phases"]).probabilities(task.texts("test")).argmax(axis=1)
    best = next(entry for entry in report["seeds"] if entry["seed"] == report["best_seed"])
    found = score(task.label_ids("test"), answers, 3, "macro_f1")
    assert found["macro_f1"] == pytest.approx(best["test"]["macro_f1"], abs=1e-4)


def test_the_stock_weights_have_zeros_where_the_mask_drops(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    mask = Mask.from_dict(report["super_ticket"]["mask"])
    weights = load_file(done["phases"] / "model" / "model.safetensors")
    for layer, kept in enumerate(mask.heads):
        columns = weights[f"model.layers.{layer}.attn.Wo.weight"].view(32, 4, 8).abs().sum(dim=(0, 2)).numpy()
        np.testing.assert_array_equal(columns > 0, kept)


def test_the_card_tells_of_the_pruning_and_counts_the_dense_model_and_the_whole_sweep(
    done: Mapping[str, Path], report: dict[str, Any]
) -> None:
    card = (done["phases"] / "model" / "README.md").read_text()
    ticket = report["super_ticket"]
    assert f"the least important {ticket['level']:.0%} of its attention heads" in card
    assert f"holds the remaining {ticket['left']:,} parameters" in card
    assert f"full size ({ticket['full']:,}), with zeros" in card
    stages = ("prepare", "joint", "finetune")
    flops = [report["dense"]["cost"][stage]["flops"] for stage in stages] + [report["sweep_cost"]["tickets"]["flops"]]
    assert f"| tickets | {flops[-1]:.3g} |" in card and f"| total | {sum(flops):.3g} |" in card


def test_the_mask_file_is_a_ticket_as_sharing_takes_it(done: Mapping[str, Path], report: dict[str, Any]) -> None:
    mask = json.loads((done["phases"] / "mask.json").read_text(encoding="utf-8"))
    assert mask == report["super_ticket"]["mask"]
    assert ShareTicketsOptions(others=("b",), tickets={"b": mask}).ticket("b") == Mask.from_dict(mask)


def test_a_level_that_would_empty_a_layer_fails_with_the_most_that_can_go() -> None:
    found = Importance(np.ones((2, 4)), np.ones(2))
    with pytest.raises(InvalidRequest, match="at most 6 heads"):
        one_shot(found, 0.9, "winning")


def test_validation_without_a_score_leaves_the_sparsest_ticket_and_no_plot(tmp_path: Path) -> None:
    task = Task.read(made_regression(tmp_path / "made"))
    same = task.splits["validation"].drop_columns("label").append_column(
        task.splits["validation"].schema.field("label"), pa.array(np.full(task.counts["validation"], 2000.0))
    )  # fmt: skip
    replace(task, splits={**task.splits, "validation": same}).write(tmp_path / "task")
    recipe = tiny(joint__enabled=False, selection__selector="none", finetune__epochs=1, finetune__evaluations=1,
                  precision="fp32", model__heads=4)  # fmt: skip
    job = make_job(recipe, kind="prune", seeds=(0,), options={"levels": [0.25, 0.5], "tickets": ["winning"]})
    done = run_plan(job, tmp_path / "task", tmp_path / "run")
    report = json.loads((done["phases"] / "report.json").read_text())
    assert [(point["mean"], "reason" in point) for point in report["curves"]] == [(None, True)] * 3
    assert report["super_ticket"]["level"] == 0.5 and not (done["phases"] / "plot.svg").exists()
    assert "validation has no score to decide by" in report["words"]
    answers = load_model(done["phases"]).probabilities(task.texts("test"))
    assert np.all((answers > 1980) & (answers < 2030)), "a ticket predicts raw targets"


def test_a_published_encoder_is_finetuned_pruned_and_exported_at_the_rates_that_validation_chooses(
    tmp_path: Path,
) -> None:
    source, rates = str(published(tmp_path / "published", "Bert")), (1e-3, 1e-4)
    recipe = tiny(model__init=source, tokenizer__source=source, joint__enabled=False, selection__selector="none",
                  finetune__max_steps=4, finetune__evaluations=1, finetune__rates=rates, precision="fp32")  # fmt: skip
    job = make_job(recipe, kind="prune", seeds=(0,), options={"levels": [0.25], "tickets": ["winning"]})
    done = run_plan(job, made_task(tmp_path / "task", (40, 20, 20)), tmp_path / "run")
    report = json.loads((done["phases"] / "report.json").read_text())
    history = {name: json.loads((done[name] / "history.json").read_text())
               for name in done if name.startswith(("finetune.", "ticket."))}  # fmt: skip
    for name in ("finetune", "ticket.winning.l0.25"):
        tries = [history[f"{name}.s0.lr{rate:g}"] for rate in rates]
        chosen = history[f"{name}.s0"]["best"]
        assert chosen["score"] == max(one["best"]["score"] for one in tries) and chosen["lr"] in rates
    costs = {key: sum(one["cost"]["flops"] for name, one in history.items() if key in name and ".lr" in name)
             for key in ("finetune", "ticket")}  # fmt: skip
    assert report["dense"]["cost"]["finetune"]["flops"] == pytest.approx(costs["finetune"])
    assert report["sweep_cost"]["tickets"]["flops"] == pytest.approx(costs["ticket"])
    assert report["seeds"][0]["chosen"]["lr"] in rates
    assert (done["ticket.winning.l0.25.s0"] / "mask.json").exists()
    stock = AutoModelForSequenceClassification.from_pretrained(str(done["phases"] / "model"))
    assert type(stock).__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize(
    ("over", "complaint"),
    [({"levels": [0.5, 0.95]}, "at most 6 heads"), ({"masks": [Mask.full(2, 3).as_dict()]}, "this one has 2 x 4")],
)
def test_tickets_for_which_a_published_encoder_has_no_room_are_refused(
    tmp_path: Path, over: dict[str, Any], complaint: str
) -> None:
    config = {"model_type": "bert", "vocab_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4,
              "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config))
    params = CheckEncoderParams(init=str(tmp_path / "encoder"), levels=(0.5,))
    run_stage(CHECK_ENCODER, {}, params, tmp_path / "fits")
    with pytest.raises(InvalidRequest, match=complaint):
        run_stage(CHECK_ENCODER, {}, CheckEncoderParams(**(params.model_dump() | over)), tmp_path / "refused")
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(InvalidRecipe, match="'gpt2' model"):
        run_stage(CHECK_ENCODER, {}, params, tmp_path / "other")
