"""Pieces of passages that the linear model labeled take turns with train texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training.made import made_prepared, made_selection, made_task, tiny
from tlm_core.linear.pieces import write_pieces
from tlm_core.stages import FINETUNE, PREPARE
from tlm_core.training.local import run_stage
from tlm_core.training.params import FinetuneParams, PrepareParams
from tlm_core.training.prepared import JointBatches, Prepared, TaskBatches
from tlm_core.training.state import read_history

RECIPE = tiny(precision="fp32", joint__rho1=1, joint__task_batch=4, finetune__epochs=1, finetune__batch=10)
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]] * 10, np.float32)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    inputs = {"task": made_task(folder / "task"), "selection": made_selection(folder / "selection")}
    inputs["self_train"] = folder / "labeled"
    inputs["self_train"].mkdir()
    write_pieces(inputs["self_train"], [f"red{number} blue common1" for number in range(20)], PROBABILITIES)
    return run_stage(PREPARE, inputs, PrepareParams.of(RECIPE), folder / "prepared")


def test_task_without_pieces_has_none(tmp_path: Path) -> None:
    assert Prepared(made_prepared(tmp_path, RECIPE)).pieces() is None


def test_pieces_keep_the_probabilities_of_their_labels(prepared: Path) -> None:
    pieces = Prepared(prepared).pieces()
    assert pieces is not None and len(pieces) == 20
    np.testing.assert_array_equal(pieces.labels, PROBABILITIES)


def test_batches_of_train_texts_and_of_pieces_take_turns(prepared: Path) -> None:
    data = Prepared(prepared)
    finetune, joint = TaskBatches(data, 4, 0), JointBatches(data, RECIPE.joint, 0)
    for draw, steps in ((finetune, range(6)), (joint, range(1, 12, 2))):
        batches = [draw(step, 0.0) for step in steps]
        names = [{name.partition(":")[0] for name in batch.sources()} for batch in batches]
        assert names == [{"train"}, {"pieces"}] * 3
        assert [batch.labels.shape for batch in batches[:2]] == [(4,), (4, 3)]
    alone = JointBatches(data, RECIPE.joint.model_copy(update={"task_loss": False}), 0)
    assert {name.partition(":")[0] for name in alone(3, 0.0).sources()} == {"train"}


def test_part_of_a_batch_has_the_probabilities_of_its_texts(prepared: Path) -> None:
    batch = TaskBatches(Prepared(prepared), 8, 0)(1, 0.0)
    batch = replace(batch, labels=np.arange(24, dtype=np.float32).reshape(8, 3))
    parts = [batch.part(row, row + 1) for row in range(len(batch.rows))]
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), batch.labels)


def test_finetuning_has_a_step_on_pieces_for_each_step_on_train(prepared: Path, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"joint": RECIPE.joint.model_copy(update={"enabled": False})})
    done = run_stage(FINETUNE, {"prepared": prepared}, FinetuneParams.of(recipe, 0), tmp_path / "finetuned")
    rows = len(Prepared(prepared).split("train"))
    history = read_history(done)
    assert history["points"][-1]["step"] == 2 * -(-rows // 10)
    assert all(np.isfinite(point["task"]) for point in history["points"])
