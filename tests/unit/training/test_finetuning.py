"""Finetuning: its start, its evaluations, the choice among rates, and the early end of training."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.unit.training.made import LABELS, made_prepared, made_selection, made_task, report_of, run_chain, tiny
from tlm_core.errors import InvalidRecipe
from tlm_core.evaluation.summary import sentences
from tlm_core.jobs.nodes import joint_node
from tlm_core.stages import CHOOSE, FINETUNE, JOINT, PREPARE
from tlm_core.tasks.task import Task
from tlm_core.training.encoder_stages import evaluation_steps
from tlm_core.training.local import run_stage
from tlm_core.training.loop import Trainer
from tlm_core.training.params import ChooseParams, FinetuneParams, JointParams, PrepareParams
from tlm_core.training.recipe import resolve
from tlm_core.training.state import HISTORY


def test_finetuning_alone_starts_from_the_joint_stage_start(tmp_path: Path) -> None:
    """After one step at a tiny rate both are still at the start, which depends on the seed alone."""
    recipe = tiny(
        joint__budget__steps=1, joint__optimizer__lr=1e-12, joint__optimizer__muon_lr=1e-12, precision="fp32",
        finetune__max_steps=1, finetune__optimizer__lr=1e-12, finetune__optimizer__weight_decay=0,
    )  # fmt: skip
    prepared = {"prepared": made_prepared(tmp_path, recipe)}
    joint = run_stage(JOINT, prepared, JointParams.of(recipe, 4), tmp_path / "joint")
    alone = run_stage(FINETUNE, prepared, FinetuneParams.of(recipe, 4), tmp_path / "alone")
    first, second = load_file(joint / "model.safetensors"), load_file(alone / "model.safetensors")
    for name, tensor in second.items():
        torch.testing.assert_close(first[name], tensor, atol=1e-8, rtol=1e-8)


def test_initial_model_is_evaluated_only_with_a_trained_head(tmp_path: Path) -> None:
    for over, first in (({}, 0), ({"finetune__reset_head": True}, 4), ({"joint__task_loss": False}, 4)):
        recipe = tiny(finetune__evaluations=2, **over)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        prepared = {"prepared": made_prepared(folder, recipe)}
        joint = run_stage(JOINT, prepared, JointParams.of(recipe, 0), folder / "joint")
        inputs = {**prepared, "joint": joint}
        out = run_stage(FINETUNE, inputs, FinetuneParams.of(recipe, 0), folder / "finetune")
        assert json.loads((out / "history.json").read_text())["evaluations"][0]["step"] == first


def test_finetuning_without_a_validation_score_uses_the_lowest_loss(tmp_path: Path) -> None:
    """The metric is `f1`, and validation lacks the positive label."""
    splits = {}
    for name, table in Task.read(made_task(tmp_path / "plain", (60, 12, 12))).splits.items():
        labels = np.asarray(table["label"]) % 2 * (name != "validation")
        splits[name] = table.set_column(table.column_names.index("label"), table.schema.field("label"), [labels])
    Task("two", LABELS[:2], "f1", False, "en", splits).write(tmp_path / "task")
    recipe = tiny(selection__selector="none", joint__enabled=False)
    inputs = {"prepared": run_stage(PREPARE, {"task": tmp_path / "task"}, PrepareParams.of(recipe), tmp_path / "data")}
    finetuned = run_stage(FINETUNE, inputs, FinetuneParams.of(recipe, 0), tmp_path / "finetuned")
    history = json.loads((finetuned / HISTORY).read_text())
    first, *later = history["evaluations"]
    assert all(entry["score"] is None for entry in (first, *later))
    assert history["best"] == min(later, key=lambda entry: entry["loss"]) and history["best"]["loss"] < first["loss"]


def test_rates_without_a_validation_score_are_chosen_by_loss(tmp_path: Path) -> None:
    folders = {}
    for number, loss in enumerate((0.7, 0.3, 0.5)):
        folders[f"try.{number}"] = folder = tmp_path / str(number)
        folder.mkdir()
        best = {"step": 1, "score": None, "loss": loss}
        (folder / HISTORY).write_text(json.dumps({"best": best, "cost": {"seconds": 1.0}}))
    params = ChooseParams(tries=tuple({"lr": rate} for rate in (1e-5, 1e-4, 1e-3)))
    chosen = run_stage(CHOOSE, folders, params, tmp_path / "chosen")
    assert json.loads((chosen / HISTORY).read_text())["best"]["lr"] == 1e-4


def test_finetune_steps_and_evaluations_follow_the_recipe() -> None:
    part = resolve("fast", "tiny", {"finetune.epochs": 3, "finetune.batch": 32}).finetune
    assert part.steps(100) == 10
    assert part.model_copy(update={"max_steps": 4}).steps(100) == 4
    assert part.model_copy(update={"epochs": 0.01}).steps(10) == 1
    assert evaluation_steps(10, 4, initial=True) == {0, 2, 5, 8, 10}
    assert evaluation_steps(2, 10, initial=False) == {1, 2}


@pytest.mark.parametrize(("limit", "steps"), [(0.1, 5), (1.0, 10)])
def test_training_ends_early_if_the_encoder_is_behind(tmp_path: Path, limit: float, steps: int) -> None:
    changes = {"joint__budget__steps": 10, "joint__optimizer__lr": 1e-12, "joint__optimizer__muon_lr": 1e-12}
    recipe = tiny(joint__stop_if_behind=limit, finetune__max_steps=8, precision="fp32", **changes)
    task, selection = made_task(tmp_path / "task", (90, 30, 60)), made_selection(tmp_path / "selection")
    folders = run_chain(task, selection, recipe, [0], tmp_path / "run")
    joint, finetune = (json.loads((folders[name] / HISTORY).read_text()) for name in ("joint.s0", "finetune.s0"))
    report = report_of(folders)
    assert joint["points"][-1]["step"] == steps
    (seed,) = report["seeds"]
    if limit == 1.0:
        assert "behind" not in seed and finetune["evaluations"][-1]["step"] == 8
        return
    assert finetune["evaluations"][-1]["step"] == 1 and report["returned"]["model"] == "linear"
    assert seed["behind"] == joint["behind"] and seed["behind"]["linear"] - seed["behind"]["encoder"] > limit
    assert "Training ended at half the joint budget" in sentences(report)[1]


def test_memory_of_a_run_is_free_after_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker runs several stages in one process. Without cycles of references, Python frees each run at once."""
    run, runs = Trainer.run, list[weakref.ref[Trainer]]()

    def recorded(trainer: Trainer) -> object:
        assert [other for other in runs if other() is not None] == []
        runs.append(weakref.ref(trainer))
        return run(trainer)

    monkeypatch.setattr(Trainer, "run", recorded)
    recipe = tiny(joint__stop_if_behind=1.0, refit=True, precision="fp32")
    task, selection = made_task(tmp_path / "task"), made_selection(tmp_path / "selection")
    gc.disable()
    try:
        run_chain(task, selection, recipe, [0, 1], tmp_path / "run")
    finally:
        gc.enable()
    assert len(runs) >= 4, "of two stages for each seed"


def test_early_end_needs_a_trained_classifier_and_a_linear_model() -> None:
    with pytest.raises(InvalidRecipe, match=r"joint\.task_loss to true"):
        resolve("fast", "tiny", {"joint.stop_if_behind": 0.2, "joint.task_loss": False})
    with pytest.raises(InvalidRecipe, match=r"Remove joint\.stop_if_behind"):
        joint_node(tiny(joint__stop_if_behind=0.2), 0, "joint.s0")
