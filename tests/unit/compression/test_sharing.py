"""Ticket sharing: a step changes only the weights of a ticket, and each task computes with its own ticket."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from tests.unit.compression.small_model import CPU, masked
from tests.unit.studies.local_plan import check_resume, make_job, read_report, run_plan
from tests.unit.training.made import made_task, tiny
from tests.unit.training.test_regression import made_regression
from tlm_core.compression.importance import gated
from tlm_core.compression.masks import Mask
from tlm_core.compression.params import PartParams, ShareParams
from tlm_core.compression.sharing import SharedBatches, SharedModel, TicketOptimizer, frozen, load_shared
from tlm_core.compression.sliced import sliced
from tlm_core.errors import InvalidRequest
from tlm_core.evaluation.report import LinearResult
from tlm_core.jobs.plan import plan_of
from tlm_core.kinds.share_tickets import PART, SHARE, SHARED_REPORT
from tlm_core.linear.params import BaselineParams
from tlm_core.stages import BASELINE, FINETUNE, PREPARE
from tlm_core.tasks.merge import MERGE, merge
from tlm_core.tasks.metrics import score
from tlm_core.tasks.task import Task
from tlm_core.training.encoder_stages import build
from tlm_core.training.evaluate import predict
from tlm_core.training.local import run_stage
from tlm_core.training.objective import Workers, accumulate_gradient, loss_sums
from tlm_core.training.params import FinetuneParams, PrepareParams, SeedsParams
from tlm_core.training.prepared import Prepared, TaskBatches, task_batch
from tlm_core.training.state import read_history

MASKS = (
    Mask(((True, False, False, True), (True,) * 4), (False, True)),
    Mask(((False, True, True, True), (True, True, False, True)), (True, True)),
)


def recipe_of(architecture: str, optimizer: str = "adamw") -> Any:
    return tiny(
        model__architecture=architecture,
        model__heads=4,
        selection__selector="none",
        joint__enabled=False,
        finetune__reset_head=True,
        finetune__optimizer__name=optimizer,
        finetune__optimizer__weight_decay=0.5,
        finetune__evaluations=2,
        precision="fp32",
    )


def prepare_parts(folder: Path, recipe: Any, *, pair: bool = False) -> list[Path]:
    """Return the prepared artifacts of two tasks that were merged."""
    sizes = {"one": (40, 12, 12), "two": (24, 10, 10)}
    tasks = [Task.read(made_task(folder / name, counts, pair=pair)) for name, counts in sizes.items()]
    (folder / "merged").mkdir()
    merge(tasks, list(sizes), folder / "merged")
    prepared = run_stage(PREPARE, {"task": folder / "merged"}, PrepareParams.of(recipe), folder / "prepared")
    inputs = {"prepared": prepared, "task": folder / "merged"}
    return [run_stage(PART, inputs, PartParams(number=n), folder / f"part{n}") for n in range(2)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Prepared]:
    folders = prepare_parts(tmp_path_factory.mktemp("parts"), recipe_of("modernbert"))
    return [Prepared(folder) for folder in folders]


def shared(recipe: Any, parts: list[Prepared]) -> SharedModel:
    models = [build(recipe.model, prepared, seed=1) for prepared in parts]
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (parameter for model in models for parameter in model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return SharedModel(models, MASKS)


def test_part_contains_only_texts_and_labels_of_its_task(tmp_path: Path) -> None:
    folders = prepare_parts(tmp_path, recipe_of("modernbert"), pair=True)
    merged = Prepared(tmp_path / "prepared")
    assert len(merged.labels) == 6 and merged.labels[3] == "two: red"
    for number, (name, begin) in enumerate((("one", 0), ("two", 40))):
        own, task = Prepared(folders[number]).split("train"), Task.read(tmp_path / name)
        np.testing.assert_array_equal(own.labels, task.label_ids("train"))
        together = merged.split("train")
        for row in (0, len(own) - 1):
            np.testing.assert_array_equal(own.store[row], together.store[begin + row])
            assert own.second is not None and together.second is not None
            assert own.second[row] == together.second[begin + row]


def test_part_contains_all_windows_of_its_texts(tmp_path: Path) -> None:
    recipe = recipe_of("modernbert")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"max_length": 16})})
    folders = prepare_parts(tmp_path, recipe)
    together, begin = Prepared(tmp_path / "prepared").split("train"), 0
    for folder, count in zip(folders, (40, 24), strict=True):
        own = Prepared(folder).split("train")
        assert len(own) == count < len(own.store) == Prepared(folder).facts["windows"]["train"]
        first, last = together.begins[begin], together.begins[begin + count]
        np.testing.assert_array_equal(own.texts, together.texts[first:last] - begin)
        for window in range(len(own.store)):
            np.testing.assert_array_equal(own.store[window], together.store[first + window])
        begin += count


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_weights_outside_a_ticket_have_zero_gradient(architecture: str, parts: list[Prepared]) -> None:
    model = shared(recipe_of(architecture), parts).eval()
    with gated(cast(Any, model), model.head_gates, model.block_gates):
        for number, prepared in enumerate(parts):
            model.select(number)
            model.zero_grad()
            loss_sums(cast(Any, model), task_batch(prepared.split("train"), np.arange(12), prepared), CPU)[1].backward()
            outside = frozen(model.shape, MASKS[number])
            layers = {name: p.grad for name, p in model.named_parameters() if name.startswith("encoder.layers.")}
            assert outside.keys() <= layers.keys()
            for name, gradient in layers.items():
                zero = gradient == 0 if gradient is not None else torch.ones_like(outside[name])
                inside = ~outside.get(name, torch.zeros_like(zero))
                assert zero[~inside].all(), name
                assert not inside.any() or zero[inside].float().mean() < 0.1, name


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_step_changes_only_weights_of_the_ticket(architecture: str, optimizer: str, parts: list[Prepared]) -> None:
    recipe = recipe_of(architecture, optimizer)
    model = shared(recipe, parts)
    optim = TicketOptimizer(model, recipe.finetune.optimizer)
    with gated(cast(Any, model), model.head_gates, model.block_gates):
        for number in (0, 1, 0):
            model.select(number)
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            state = {name: value.clone() for name, value in optim.state().items()}
            batch = task_batch(parts[number].split("train"), np.arange(12), parts[number])
            optim.zero_grad()
            accumulate_gradient(cast(Any, model), batch, Workers(), 64, "fp32", CPU)
            optim.step(1.0, batch.active)
            differs = {name: p.detach() != before[name] for name, p in model.named_parameters()}
            outside = frozen(model.shape, MASKS[number])
            for name, changed in differs.items():
                if name.startswith("task"):
                    assert changed.any() == name.startswith(f"task{number}."), name
                elif name in outside:
                    assert not changed[outside[name]].any(), name
                    if not outside[name].all():
                        assert changed[~outside[name]].float().mean() > 0.9, name
            other = f"task{1 - number}."
            assert all(torch.equal(state[name], v) for name, v in optim.state().items() if name.startswith(other))


def test_tickets_of_the_tests_differ(parts: list[Prepared]) -> None:
    """So the test above fails if both tasks use the same mask."""
    first, second = (frozen(shared(recipe_of("modernbert"), parts).shape, mask) for mask in MASKS)
    name = "encoder.layers.0.attention.qkv.weight"
    assert (first[name] & ~second[name]).any() and (second[name] & ~first[name]).any()


def test_each_task_computes_like_its_sliced_model(parts: list[Prepared]) -> None:
    recipe = recipe_of("modernbert")
    model = shared(recipe, parts).eval()
    with gated(cast(Any, model), model.head_gates, model.block_gates):
        logits = []
        for number in (0, 1):
            model.select(number)
            logits.append(predict(cast(Any, model), parts[number].split("test"), parts[number], device=CPU))
    for number in (0, 1):
        alone = build(recipe.model, parts[number], seed=1).eval()
        alone.encoder.load_state_dict(model.encoder.state_dict())
        alone.task.load_state_dict(getattr(model, f"task{number}").state_dict())
        expected = predict(sliced(alone, MASKS[number]), parts[number].split("test"), parts[number], device=CPU)
        np.testing.assert_allclose(logits[number], expected, atol=1e-4)
        with masked(alone, MASKS[number]):
            again = predict(alone, parts[number].split("test"), parts[number], device=CPU)
        np.testing.assert_allclose(logits[number], again, atol=1e-5)


def test_each_task_gets_the_batches_of_separate_training(
    parts: list[Prepared],
) -> None:
    model = shared(recipe_of("modernbert"), parts)
    counts = (5, 6)  # one epoch of the first task's 40 texts, two of the second's 24
    batches = SharedBatches(model, parts, counts, tiny(finetune__batch=8).finetune, seed=0)
    seen: dict[int, list[list[int]]] = {0: [], 1: []}
    turns: list[int] = []
    for step in range(sum(counts)):
        batch = batches(step, 0.0)
        turns.append(model.current)
        seen[model.current].append(batch.rows.documents.tolist())
    assert turns != sorted(turns), "the tasks are mixed"
    for number, prepared in enumerate(parts):
        alone = TaskBatches(prepared, 8, seed=0)
        assert seen[number] == [alone(turn, 0.0).rows.documents.tolist() for turn in range(counts[number])]
    texts = [sorted(text for batch in seen[number] for text in batch) for number in range(2)]
    assert texts == [list(range(40)), sorted(2 * list(range(24)))]


def test_share_stage_trains_models_for_each_task(parts: list[Prepared], tmp_path: Path) -> None:
    recipe = recipe_of("modernbert")
    inputs = {f"prepared.{number}": prepared.folder for number, prepared in enumerate(parts)}
    params = ShareParams.of(recipe, 3, tickets=MASKS)
    out = run_stage(SHARE, inputs, params, tmp_path / "shared")
    history = json.loads((out / "history.json").read_text())
    best = history["best"]
    assert best["score"] == pytest.approx((best["score.0"] + best["score.1"]) / 2)
    for number, prepared in enumerate(parts):
        model = load_shared(out, number, 3)
        assert sum(sum(row) for row in MASKS[number].heads) == sum(
            cast(Any, layer).attention.heads for layer in model.encoder.layers
        )
        assert predict(model, prepared.split("test"), prepared, device=CPU).shape == (len(prepared.split("test")), 3)


def test_muon_shares_in_the_precision_of_the_recipe(
    parts: list[Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = set()

    def recorded(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        types.add(dtype)
        return matrices

    monkeypatch.setattr("tlm_core.training.optim.orthogonalize", recorded)
    recipe = recipe_of("modernbert", "muon").model_copy(update={"precision": "bf16"})
    inputs = {f"prepared.{number}": prepared.folder for number, prepared in enumerate(parts)}
    finetune = recipe.finetune.model_copy(update={"max_steps": 1, "evaluations": 1})
    recipe = recipe.model_copy(update={"finetune": finetune})
    run_stage(SHARE, inputs, ShareParams.of(recipe, 3, tickets=MASKS), tmp_path / "shared")
    assert types == {torch.bfloat16}


def test_merging_rejects_equal_names_and_several_languages(tmp_path: Path) -> None:
    task = Task.read(made_task(tmp_path / "task", (12, 4, 4)))
    with pytest.raises(InvalidRequest, match="labels clash"):
        merge([task, task], ["same", "same"], tmp_path / "a")
    with pytest.raises(InvalidRequest, match="need one language"):
        merge([task, replace(task, language="de")], ["one", "two"], tmp_path / "b")


def test_single_texts_pairs_and_regression_share_an_encoder(tmp_path: Path) -> None:
    tasks = [
        Task.read(made_task(tmp_path / "single", (24, 8, 8))),
        Task.read(made_task(tmp_path / "pairs", (24, 8, 8), pair=True)),
        Task.read(made_regression(tmp_path / "regression", (24, 8, 8))),
    ]
    recipe = tiny(finetune__epochs=1, finetune__evaluations=1, precision="fp32", model__heads=4, model__init="scratch")
    (tmp_path / "merged").mkdir()
    merge(tasks, ["single", "pairs", "regression"], tmp_path / "merged")
    merged = {"task": tmp_path / "merged"}
    sources = {"prepared": run_stage(PREPARE, merged, PrepareParams.of(recipe), tmp_path / "prepared"), **merged}
    inputs = {}
    for number in range(3):
        out = tmp_path / f"part{number}"
        inputs[f"prepared.{number}"] = run_stage(PART, sources, PartParams(number=number), out)
    second = Prepared(inputs["prepared.0"]).split("train").second
    assert (
        second is not None and second.tolist() == Prepared(inputs["prepared.0"]).split("train").store.lengths.tolist()
    )
    np.testing.assert_allclose(Prepared(inputs["prepared.2"]).split("test").labels, tasks[2].targets("test"), rtol=1e-6)
    params = ShareParams.of(recipe, 0, tickets=(None, None, None))
    out = run_stage(SHARE, inputs, params, tmp_path / "shared")
    last = json.loads((out / "history.json").read_text())["evaluations"][-1]
    assert {"score.0", "score.1", "score.2"} <= last.keys()
    regression = Prepared(inputs["prepared.2"])
    predicted = predict(load_shared(out, 2, 1), regression.split("test"), regression, device=CPU)
    assert np.all((predicted > 1980) & (predicted < 2030)), "each task predicts in its own units"


def test_merging_records_labels_of_each_task(tmp_path: Path) -> None:
    task = Task.read(made_task(tmp_path / "task", (12, 4, 4)))
    (tmp_path / "merged").mkdir()
    merge([task, task], ["a", "b"], tmp_path / "merged")
    facts = json.loads((tmp_path / "merged" / MERGE).read_text())
    assert [(entry["name"], entry["offset"]) for entry in facts] == [("a", 0), ("b", 3)]
    assert Task.read(tmp_path / "merged").counts == {"train": 24, "validation": 8, "test": 8}


def test_job_compares_systems_and_interrupted_training_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(joint__budget__steps=4, finetune__epochs=1, finetune__evaluations=1, precision="fp32", model__heads=4)
    options = {"others": ["second"], "level": 0.25, "tickets": {"second": MASKS[1].as_dict()}}
    job = make_job(recipe, others=1, kind="share_tickets", dataset="first", seeds=(0, 1), options=options)
    done = run_plan(job, made_task(tmp_path / "task", (40, 12, 20)), tmp_path / "run")
    report = read_report(done["report"])
    assert [task["name"] for task in report["tasks"]] == ["first", "second"]
    for system in ("alone", "multi_task", "tickets"):
        values = [[task[system]["seeds"][seed]["test"]["value"] for task in report["tasks"]] for seed in (0, 1)]
        assert report["average"][system]["mean"] == pytest.approx(np.mean(values))
        assert set(report["cost"]) == {"prepare", "joint", "alone", "multi_task", "tickets", "linear", "total"}
    joint = [read_history(done[f"joint.s{seed}"])["cost"]["seconds"] for seed in (0, 1)]
    assert report["cost"]["joint"]["seconds"] == pytest.approx(sum(joint))
    assert report["cost"]["prepare"] == Prepared(done["prepare"]).facts["cost"]
    linear = [LinearResult.read(done[f"baseline.{number}"]).outputs["test"].argmax(axis=1) for number in (0, 1)]
    task = Task.read(tmp_path / "task")
    scores = [score(task.label_ids("test"), guess, 3, "macro_f1")["value"] for guess in linear]
    assert [entry["linear"]["mean"]["test"]["macro_f1"] for entry in report["tasks"]] == scores
    assert report["average"]["linear"]["mean"] == pytest.approx(np.mean(scores))
    majority = [entry["majority"]["mean"]["test"]["macro_f1"] for entry in report["tasks"]]
    assert 0 < majority[0] == majority[1] == report["average"]["majority"]["mean"], "Both datasets are the same."
    assert f"The majority class has {majority[0]:.4f}." in report["words"]
    assert f"{np.mean(scores):.4f} with a linear model for each task" in report["words"]
    assert 0 < report["weights_left"][0] < 1 and f"{report['average']['tickets']['mean']:.4f}" in report["words"]
    masks = json.loads((done["multi_task.s0"] / "masks.json").read_text())
    assert all(Mask.from_dict(mask) == Mask.full(2, 4) for mask in masks)
    with open(done["report"] / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (3 * 2 + 2)
    assert [(row["task"], row["seed"]) for row in rows if row["system"] == "linear"] == [("first", ""), ("second", "")]
    root = ElementTree.parse(done["report"] / "plot.svg").getroot()
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 5 * (2 + 1), "each system, each task and all"
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"first", "second", "mean of all", "alone", "multi task", "tickets", "linear"} <= set(texts)
    check_resume(plan_of(job).node("tickets.s1"), done, tmp_path / "interrupted", monkeypatch)


def test_further_test_sets_are_merged_and_scored(tmp_path: Path) -> None:
    a, b = (Task.read(made_task(tmp_path / name, (24, 8, 12), pair=name == "two")) for name in ("one", "two"))
    a = replace(a, splits={**a.splits, "test_other": a.splits["validation"]})
    b = replace(b, splits={**b.splits, "test_other": b.splits["test"], "test_third": b.splits["validation"]})
    tasks = [a, b]
    for number, task in enumerate(tasks):
        task.write(tmp_path / f"task{number}")
    (tmp_path / "merged").mkdir()
    merge(tasks, ["one", "two"], tmp_path / "merged")
    assert Task.read(tmp_path / "merged").counts == {
        "train": 48, "validation": 16, "test": 24, "test_other": 20, "test_third": 8,
    }  # fmt: skip
    recipe = recipe_of("modernbert")
    sources = {"task": tmp_path / "merged"}
    sources["prepared"] = run_stage(PREPARE, sources, PrepareParams.of(recipe), tmp_path / "prepared")
    inputs = {"merged": tmp_path / "merged", "prepared": sources["prepared"]}
    finetune = FinetuneParams.of(recipe, 0)
    for number in range(2):
        out = run_stage(PART, sources, PartParams(number=number), tmp_path / f"part{number}")
        inputs |= {f"task.{number}": tmp_path / f"task{number}", f"prepared.{number}": out}
        assert Prepared(out).facts["counts"] == tasks[number].counts
        for test in tasks[number].further_tests:
            np.testing.assert_array_equal(Prepared(out).split(test).labels, tasks[number].label_ids(test))
        inputs[f"baseline.{number}"] = run_stage(
            BASELINE, {"task": tmp_path / f"task{number}"}, BaselineParams(), tmp_path / f"baseline{number}"
        )
        inputs[f"alone.{number}.s0"] = run_stage(FINETUNE, {"prepared": out}, finetune, tmp_path / f"alone{number}")
    parts = {f"prepared.{number}": inputs[f"prepared.{number}"] for number in range(2)}
    for system in ("multi_task", "tickets"):
        params = ShareParams.of(recipe, 0, tickets=(None, None))
        inputs[f"{system}.s0"] = run_stage(SHARE, parts, params, tmp_path / system)
    done = run_stage(SHARED_REPORT, inputs, SeedsParams(seeds=(0,)), tmp_path / "report")
    report = read_report(done)
    assert [task["tests"] for task in report["tasks"]] == [["test", "test_other"], ["test", "test_other", "test_third"]]
    for system in ("alone", "multi_task", "tickets"):
        first, second = (task[system]["seeds"][0] for task in report["tasks"])
        assert (first["test_other"]["value"], second["test_other"]["value"], second["test_third"]["value"]) == (
            first["validation"]["value"], second["test"]["value"], second["validation"]["value"],
        )  # fmt: skip
        assert report["average"][system]["mean"] == pytest.approx(
            (first["test"]["value"] + second["test"]["value"]) / 2
        )
    with open(done / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["test_third"] == "" for row in rows] == [row["task"] == "one" for row in rows]
