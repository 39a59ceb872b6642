"""Models that train again on train and validation, after all choices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file

from tests.unit.training.made import LABELS, made_selection, made_task, report_of, run_chain, tiny
from tlm_core.artifacts import MANIFEST
from tlm_core.evaluation.report import LinearResult
from tlm_core.evaluation.summary import BEHIND, REPORT
from tlm_core.linear.fit import Fits
from tlm_core.linear.params import BaselineParams, SelfTrainParams
from tlm_core.linear.self_training import Pool, Student
from tlm_core.serving import load_model as load_served
from tlm_core.stages import BASELINE, EVALUATE, REFIT, REFIT_LINEAR, SELF_TRAIN
from tlm_core.tasks.task import Task, task_schema
from tlm_core.training.card import model_card
from tlm_core.training.local import LocalReporter, run_stage
from tlm_core.training.params import CardRecipe, FinetuneParams, SeedsParams
from tlm_core.training.prepared import Prepared, TaskBatches
from tlm_core.training.stage import StopRequested
from tlm_core.training.state import HISTORY, WEIGHTS, read_history

RECIPE = tiny(finetune__epochs=6, finetune__optimizer__lr=1e-3, precision="fp32", joint__enabled=False)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A job on a task whose test texts have words that occur in validation, and not in train."""
    folder, random, tables = tmp_path_factory.mktemp("chain"), np.random.default_rng(0), {}
    words = {"train": ("ant", "bug", "cow"), "validation": ("fig", "pea", "yam"), "test": ("fig", "pea", "yam")}
    for split, count in (("train", 60), ("validation", 60), ("test", 60)):
        labels = random.integers(0, len(LABELS), count)
        texts = [f"{words[split][label]} common{random.integers(20)}" for label in labels]
        columns = {"row": np.arange(1, count + 1), "text": texts, "label": labels.astype(np.int32)}
        tables[split] = pa.table(columns, schema=task_schema(False))
    Task("made", LABELS, "macro_f1", False, "en", tables).write(folder / "task")
    return {"task": folder / "task", **run_chain(folder / "task", None, RECIPE, [0, 1], folder / "run")}


def test_tested_and_returned_models_learned_from_validation(chain: Mapping[str, Path]) -> None:
    report, task = report_of(chain), Task.read(chain["task"])
    assert report["refit"] is True and [entry["refit"] for entry in report["seeds"]] == [True, True]
    words = "After all choices, the refit trained each model again, on train and validation."
    assert words in (chain["export"] / "model" / "README.md").read_text()
    for name, model in report["models"].items():
        if name != "combined":
            assert model["mean"]["validation"]["accuracy"] < 0.7, f"{name} on validation must not know its words"
    assert report["models"]["linear"]["mean"]["test"]["accuracy"] == 1.0
    answers = load_served(chain["export"]).probabilities(task.texts("test")).argmax(axis=1)
    assert (answers == task.label_ids("test")).mean() == report["mean"]["test"]["accuracy"]


def test_choices_and_suspects_use_models_without_validation(chain: Mapping[str, Path]) -> None:
    first = LinearResult.read(chain["baseline"])
    last = LinearResult.read(chain["refit_linear"] / "linear")
    assert set(last.outputs) == {"test"} and last.facts["setting"] == first.facts["setting"]
    assert read_history(chain["refit.s0"])["evaluations"] == []


def test_refit_has_the_share_of_the_steps_that_validation_chose(chain: Mapping[str, Path]) -> None:
    finetuned, again = read_history(chain["finetune.s0"]), read_history(chain["refit.s0"])
    steps, more = (RECIPE.finetune.steps(rows) for rows in (60, 120))
    assert again["points"][-1]["step"] == round(finetuned["best"]["step"] / steps * more)


def test_rate_of_the_refit_falls_to_zero_over_the_chosen_steps(chain: Mapping[str, Path], tmp_path: Path) -> None:
    best = read_history(chain["finetune.s0"])["best"] | {"step": RECIPE.finetune.steps(60) // 2}
    again = refit(chain, with_history(chain["finetune.s0"], tmp_path / "finetuned", {"best": best}), tmp_path / "again")
    last = read_history(again)["points"][-1]
    assert last["step"] == round(best["step"] / RECIPE.finetune.steps(60) * RECIPE.finetune.steps(120))
    assert 0 < last["rate"] < 1 / last["step"], "With the schedule of all steps, it would be about a half."


def refit(chain: Mapping[str, Path], finetuned: Path, out: Path, report: LocalReporter | None = None) -> Path:
    inputs = {"prepared": chain["prepare"], "finetune": finetuned}
    return run_stage(REFIT, inputs, FinetuneParams.of(RECIPE, 0), out, report)


def test_stopped_refit_continues_to_the_same_weights(chain: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        refit(chain, chain["finetune.s0"], tmp_path / "again", LocalReporter(should_continue_at=lambda step: step < 3))
    (tmp_path / "again").rmdir()
    resumed = refit(chain, chain["finetune.s0"], tmp_path / "again")
    assert (resumed / WEIGHTS).read_bytes() == (chain["refit.s0"] / WEIGHTS).read_bytes()


def with_history(source: Path, folder: Path, change: Mapping[str, object]) -> Path:
    """Copy the result of finetuning into `folder`, with a changed history."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name != MANIFEST:
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / HISTORY).write_text(json.dumps({**read_history(source), **change}))
    return folder


@pytest.mark.parametrize("change", [{"best": {"step": 0, "score": 0.5}}, {BEHIND: {"linear": 0.9, "encoder": 0.1}}])
def test_untouched_or_useless_encoder_stays_as_it_is(
    chain: Mapping[str, Path], tmp_path: Path, change: dict[str, object]
) -> None:
    finetuned = with_history(chain["finetune.s0"], tmp_path / "finetuned", change)
    out = refit(chain, finetuned, tmp_path / "out")
    assert (out / WEIGHTS).read_bytes() == (finetuned / WEIGHTS).read_bytes()
    assert set(read_history(out)["cost"].values()) == {0.0}


def test_report_and_card_name_the_encoder_that_refit_copied(chain: Mapping[str, Path], tmp_path: Path) -> None:
    untouched = with_history(chain["finetune.s0"], tmp_path / "finetuned", {"best": {"step": 0, "score": 0.5}})
    inputs = {name: chain[name] for name in ("task", "baseline", "refit_linear", "finetune.s1", "refit.s1")}
    inputs |= {"prepared": chain["prepare"], "finetune.s0": untouched}
    inputs["refit.s0"] = refit(chain, untouched, tmp_path / "again")
    report = json.loads((run_stage(EVALUATE, inputs, SeedsParams(seeds=(0, 1)), tmp_path / "out") / REPORT).read_text())
    assert [entry["refit"] for entry in report["seeds"]] == [False, True]
    facts = json.loads((chain["prepare"] / "data.json").read_text())
    card = model_card(report, facts, CardRecipe.of(RECIPE))
    assert "trained these models again, on train and validation: the linear model, the encoder of seed 1." in card
    assert "It copied the encoder of seed 0, because finetuning brought no gain on validation." in card


def test_refit_uses_the_chosen_rate_and_class_weights(chain: Mapping[str, Path], tmp_path: Path) -> None:
    finetuned = tmp_path / "finetuned"
    finetuned.mkdir()
    best = {**read_history(chain["finetune.s0"])["best"], "lr": 1e-30, "class_weights": "balanced"}
    (finetuned / HISTORY).write_text(json.dumps({**read_history(chain["finetune.s0"]), "best": best}))
    out = refit(chain, finetuned, tmp_path / "out")
    again, first = load_file(out / WEIGHTS), load_file(chain["refit.s0"] / WEIGHTS)
    assert any((again[name] - first[name]).abs().max() > 1e-3 for name in again)


@pytest.mark.parametrize("pair", [False, True])
def test_batches_of_two_splits_have_the_texts_of_both(tmp_path: Path, pair: bool) -> None:
    task = made_task(tmp_path / "task", (30, 12, 5), pair=pair, longest=120)
    recipe = tiny(joint__enabled=False, finetune__epochs=1)
    prepared = Prepared(run_chain(task, None, recipe, [0], tmp_path / "run")["prepare"])
    both, splits = prepared.training(("train", "validation")), [prepared.split(n) for n in ("train", "validation")]
    windows = [split.store[number] for split in splits for number in range(len(split.store))]
    assert len(both) == 42 and len(both.store) == len(windows)
    assert all((both.store[number] == window).all() for number, window in enumerate(windows))
    labels = [label for split in splits for label in split.labels]
    assert both.labels.tolist() == labels and len(np.unique(both.texts)) == 42
    batch = TaskBatches(prepared, 42, 0, ("train", "validation"))(0, 0.0)
    assert sorted(batch.labels.tolist()) == sorted(labels)
    rows = [f"{name}:{row}" for name, split in zip(("train", "validation"), splits, strict=True) for row in split.rows]
    assert sorted(batch.sources()) == sorted(rows)
    if pair:
        assert both.second is not None and len(both.second) == 42


def test_refit_requests_the_chosen_amount_of_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"task": made_task(tmp_path / "task", (40, 20, 10)), "selection": made_selection(tmp_path / "selection")}
    for stage, params in ((BASELINE, BaselineParams()), (SELF_TRAIN, SelfTrainParams(amounts=(0.5, 1.0)))):
        inputs[stage.name] = run_stage(stage, inputs, params, tmp_path / stage.name)
    facts, pools, students = LinearResult.read(inputs["self_train"]).facts, list[int](), list[int]()
    initialize, student_of = Pool.__init__, Pool.student

    def recorded_pool(pool: Pool, *args: Any) -> None:
        pools.append(args[-1])
        initialize(pool, *args)

    def recorded_student(pool: Pool, fits: Fits, total: int) -> Student:
        students.append(total)
        return student_of(pool, fits, total)

    monkeypatch.setattr(Pool, "__init__", recorded_pool)
    monkeypatch.setattr(Pool, "student", recorded_student)
    out = run_stage(REFIT_LINEAR, inputs, BaselineParams(), tmp_path / "out")
    assert (pools, students) == ([60], [60 * facts["amount"]])
    assert facts["pieces"] < LinearResult.read(out / "self_trained").facts["pieces"] <= 60 * facts["amount"] + 1


def test_copies_of_validation_texts_do_not_count_in_test(chain: Mapping[str, Path]) -> None:
    task = Task.read(chain["task"])
    known = set(task.texts("train")) | set(task.texts("validation"))
    assert task.repeated("test").tolist() == [text in known for text in task.texts("test")]
    assert task.repeated("test").any() and not task.repeated("validation").any()
