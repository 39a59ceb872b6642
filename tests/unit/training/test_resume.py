"""Checkpoints: exact resume after a kill or a stop, and the content of a checkpoint."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.training.killed import DyingReporter, Killed, content, run_of
from tests.unit.training.made import made_prepared, tiny, trainer_of
from tlm_core.errors import CorruptArtifact, StorageFull
from tlm_core.training.local import LocalCheckpoints, LocalReporter
from tlm_core.training.stage import StopRequested
from tlm_core.training.state import TrainState, checkpoint_writer, load_checkpoint

pytestmark = pytest.mark.usefixtures("report_at_every_step")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "over",
    [
        {},
        {"joint__optimizer__name": "adamw", "model__architecture": "bert", "model__dropout": 0.1},
        {"joint__budget__tokens": 4000, "joint__mask_rate_end": 0.1},
    ],
    ids=["muon", "adamw with dropout", "token budget"],
)
def test_resumed_run_equals_an_uninterrupted_run_bit_for_bit(
    over: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    recipe = tiny(precision=precision, checkpoint_steps=1, **over)
    prepared = made_prepared(tmp_path / "data", recipe)
    whole = content(run_of(tmp_path / "whole", prepared, recipe)())
    killed = run_of(tmp_path / "killed", prepared, recipe)
    random = np.random.default_rng(0)
    for step in sorted(random.choice(np.arange(1, 11), 4, replace=False)):
        with pytest.raises(Killed):
            killed(DyingReporter(die_at=int(step)))
    assert content(killed()) == whole


def test_lost_steps_after_a_checkpoint_repeat_exactly(tmp_path: Path) -> None:
    recipe = tiny(checkpoint_steps=5)
    prepared = made_prepared(tmp_path / "data", recipe)
    whole = content(run_of(tmp_path / "whole", prepared, recipe)())
    killed = run_of(tmp_path / "killed", prepared, recipe)
    for step in (3, 8, 9):
        with pytest.raises(Killed):
            killed(DyingReporter(die_at=step))
    assert [path.name for path in (tmp_path / "killed/checkpoints").iterdir()] == ["step-000000005"]
    assert content(killed()) == whole


def test_twenty_kills_at_random_steps_do_not_change_the_result(tmp_path: Path) -> None:
    recipe = tiny(checkpoint_steps=3, joint__budget__steps=60)
    prepared = made_prepared(tmp_path / "data", recipe)
    whole = content(run_of(tmp_path / "whole", prepared, recipe)())
    killed = run_of(tmp_path / "killed", prepared, recipe)
    for step in sorted(np.random.default_rng(2).choice(np.arange(1, 60), 20, replace=False)):
        with pytest.raises(Killed):
            killed(DyingReporter(die_at=int(step)))
    assert content(killed()) == whole


def test_killed_finetuning_retains_its_best_evaluation(tmp_path: Path) -> None:
    recipe = tiny(checkpoint_steps=1, finetune__evaluations=6, finetune__epochs=4)
    prepared = made_prepared(tmp_path / "data", recipe)
    inputs = {"joint": run_of(tmp_path / "joint", prepared, recipe)()}
    whole = content(run_of(tmp_path / "whole", prepared, recipe, "finetune", inputs)())
    killed = run_of(tmp_path / "killed", prepared, recipe, "finetune", inputs)
    for step in (2, 6, 11):
        with pytest.raises(Killed):
            killed(DyingReporter(die_at=step))
    resumed = content(killed())
    assert resumed == whole
    assert resumed["history"]["evaluations"][0]["step"] == 0


def test_stop_request_ends_within_a_step_with_a_checkpoint(tmp_path: Path) -> None:
    recipe = tiny(checkpoint_steps=1000)
    prepared = made_prepared(tmp_path / "data", recipe)
    whole = content(run_of(tmp_path / "whole", prepared, recipe)())
    run = run_of(tmp_path / "stopped", prepared, recipe)
    with pytest.raises(StopRequested):
        run(LocalReporter(should_continue_at=lambda step: step < 4))
    assert [path.name for path in (tmp_path / "stopped/checkpoints").iterdir()] == ["step-000000005"]
    assert content(run()) == whole


def test_checkpoint_of_another_model_is_rejected(tmp_path: Path) -> None:
    recipe, other = tiny(checkpoint_steps=1), tiny(checkpoint_steps=1, model__intermediate=64)
    prepared = made_prepared(tmp_path / "data", recipe)
    with pytest.raises(Killed):
        run_of(tmp_path / "run", prepared, recipe)(DyingReporter(die_at=3))
    with pytest.raises(CorruptArtifact, match=r"has shape \(.*\) instead of \("):
        run_of(tmp_path / "run", prepared, other)()


def test_late_checkpoint_write_has_the_state_of_its_request(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 10)
    state = TrainState(step=3)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    write = checkpoint_writer(state, trainer.model, trainer.optimizer, None)
    state.step = 4
    with torch.no_grad():
        trainer.optimizer.buffers.value.add_(1)
        for moment in trainer.optimizer.state().values():
            moment.add_(1)
    (tmp_path / "late").mkdir()
    write(tmp_path / "late")
    loaded, _ = load_checkpoint(tmp_path / "late", trainer.model, trainer.optimizer)
    assert loaded.step == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    assert not any(moment.any() for moment in trainer.optimizer.state().values())


def test_checkpoint_without_space_raises_storage_full(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 10)
    write = checkpoint_writer(TrainState(), trainer.model, trainer.optimizer, None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with pytest.raises(StorageFull, match="no space left"):
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_checkpoint_holds_safetensors_and_json(tmp_path: Path) -> None:
    recipe = tiny(checkpoint_steps=4)
    prepared = made_prepared(tmp_path / "data", recipe)
    with pytest.raises(Killed):
        run_of(tmp_path / "run", prepared, recipe)(DyingReporter(die_at=4))
    folder = LocalCheckpoints(tmp_path / "run/checkpoints").latest()
    assert folder is not None
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert json.loads((folder / "state.json").read_text())["step"] == 4
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("task.out.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CorruptArtifact, match=r"task\.out\.bias"):
        run_of(tmp_path / "run", prepared, recipe)()
