"""Failures of a run: losses that are not finite, and memory that runs out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.training.killed import run_of
from tests.unit.training.made import made_prepared, tiny, trainer_of
from tlm_core.errors import NonFiniteLoss, OutOfMemory
from tlm_core.training.encoder_stages import joint_trainer
from tlm_core.training.evaluate import predict
from tlm_core.training.local import LocalCheckpoints, LocalReporter
from tlm_core.training.memory import training_bytes
from tlm_core.training.optim import FlatOptimizer
from tlm_core.training.params import JointParams
from tlm_core.training.passes import RowPasses
from tlm_core.training.prepared import Batch, Prepared
from tlm_core.training.stage import StageContext
from tlm_core.training.state import TrainState, checkpoint_writer

pytestmark = pytest.mark.usefixtures("report_at_every_step")


def test_non_finite_loss_names_step_and_passages_before_the_update(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 10)
    name = "vocabulary.out.bias"
    with torch.no_grad():
        trainer.model.get_parameter(name)[7] = float("nan")
    before = trainer.model.get_parameter("encoder.tokens.weight").detach().clone()
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.run()
    assert caught.value.facts["step"] == 1
    sources = caught.value.facts["sources"]
    assert len(sources) > 3 and all(len(source) == 32 for source in sources)
    assert torch.equal(before, trainer.model.get_parameter("encoder.tokens.weight"))
    assert caught.value.facts["checkpoint"] is None and "There is no checkpoint." in str(caught.value)


def test_non_finite_loss_names_the_newest_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 10, checkpoint_steps=2)
    batches = trainer.batches

    def spoiled(step: int, progress: float) -> Batch:
        if step == 5:
            with torch.no_grad():
                trainer.model.get_parameter("vocabulary.out.bias")[7] = float("nan")
        return batches(step, progress)

    trainer.batches = spoiled
    with pytest.raises(NonFiniteLoss, match="The newest checkpoint is of step 4") as caught:
        trainer.run()
    assert (caught.value.facts["step"], caught.value.facts["checkpoint"]) == (6, 4)


def test_recipe_can_skip_non_finite_steps(tmp_path: Path) -> None:
    over = {"joint__optimizer__non_finite": "skip", "joint__rho1": 3}
    trainer = trainer_of(tmp_path, 12, **over)
    with torch.no_grad():
        trainer.model.get_parameter("task.out.bias")[0] = float("inf")
    state, _ = trainer.run()
    reporter = trainer.ctx.report
    assert isinstance(reporter, LocalReporter)
    assert state.step == 12 and state.skipped == 3
    norms = {point["step"]: point["gradient_norm"] for point in state.points}
    assert [step for step, norm in norms.items() if norm is None] == [4, 8, 12], "the history has no NaN"
    assert [(type, data["step"]) for type, data in reporter.events] == [("step.skipped", step) for step in (4, 8, 12)]
    assert all(torch.isfinite(tensor).all() for name, tensor in trainer.model.named_parameters() if "task" not in name)


def test_skip_limit_grows_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlm_core.training.loop.SKIPS", 2)
    for share in (0.3, 0.1):  # of the steps 4, 8, and 12 the last exceeds a limit of a tenth of the steps
        monkeypatch.setattr("tlm_core.training.loop.SKIPPED_SHARE", share)
        over = {"joint__optimizer__non_finite": "skip", "joint__rho1": 3}
        trainer = trainer_of(tmp_path / str(share), 12, **over)
        with torch.no_grad():
            trainer.model.get_parameter("task.out.bias")[0] = float("inf")
        if share == 0.3:
            assert trainer.run()[0].skipped == 3
        else:
            with pytest.raises(NonFiniteLoss, match="at step 12"):
                trainer.run()


def test_run_that_skips_every_step_fails(tmp_path: Path) -> None:
    over = {"joint__optimizer__non_finite": "skip"}
    trainer = trainer_of(tmp_path, 100, **over)
    with torch.no_grad():
        trainer.model.get_parameter("vocabulary.out.bias")[7] = float("nan")
    with pytest.raises(NonFiniteLoss, match="at step 21"):
        trainer.run()


def _fits(rows: int) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
    """Simulate a device whose memory fits `rows` rows."""

    def check(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if len(arguments[0]) > rows:
            raise torch.OutOfMemoryError("no room")

    return check


def test_out_of_memory_halves_rows_with_the_same_batches(tmp_path: Path) -> None:
    roomy = trainer_of(tmp_path / "roomy", 6)
    plenty, _ = roomy.run()
    tight = trainer_of(tmp_path / "tight", 6)
    tight.model.encoder.register_forward_pre_hook(_fits(3))
    state, _ = tight.run()
    reporter = tight.ctx.report
    assert isinstance(reporter, LocalReporter)
    assert reporter.events == [("memory.stepped_down", {"step": 1, "rows": 2})]
    assert state.micro_rows == 2 and state.step == 6
    assert [point["mlm"] for point in state.points] == pytest.approx([p["mlm"] for p in plenty.points], rel=1e-3)
    assert (state.tokens, state.flops) == (plenty.tokens, plenty.flops)


def test_cpu_starts_with_the_rows_that_fit_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, 2)
    monkeypatch.setattr("tlm_core.training.memory.memory_limit", lambda: 0)
    state, _ = trainer.run()
    assert state.micro_rows == 1


def test_joint_memory_estimate_uses_the_highest_mask_rate(tmp_path: Path) -> None:
    recipe = tiny(joint__mask_rate=0.2, joint__mask_rate_end=0.4)
    ctx = StageContext(
        inputs={"prepared": made_prepared(tmp_path, recipe)},
        params=JointParams.of(recipe, 0),
        out=tmp_path,
        report=LocalReporter(),
        checkpoints=LocalCheckpoints(tmp_path),
    )
    trainer = joint_trainer(ctx)
    assert isinstance(trainer.passes, RowPasses) and trainer.passes.memory is not None
    assert trainer.passes.memory(8) == training_bytes(trainer.model.shape, trainer.optimizer.size, 8, 0.4 + 0.15)


def test_resumed_run_uses_only_the_rows_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, 4)
    write = checkpoint_writer(TrainState(step=2, micro_rows=8), trainer.model, trainer.optimizer, None)
    trainer.ctx.checkpoints.save(write, step=2, metrics={})
    for limit, rows in ((10**15, 8), (0, 1)):
        monkeypatch.setattr("tlm_core.training.memory.memory_limit", lambda limit=limit: limit)
        state, _ = trainer.run()
        assert (state.step, state.micro_rows) == (4, rows)


def test_optimizer_that_exceeds_memory_raises_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(FlatOptimizer, "step", fails)
    recipe = tiny()
    with pytest.raises(OutOfMemory, match="optimizer state exceed the device's memory"):
        run_of(tmp_path / "run", made_prepared(tmp_path / "data", recipe), recipe)()


def test_only_allocator_errors_count_as_out_of_memory(tmp_path: Path) -> None:
    allocator_error = (
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
    )
    for message, expected in ((allocator_error, OutOfMemory), ("shapes do not match", RuntimeError)):

        def fails(*_: Any, message: str = message) -> None:
            raise RuntimeError(message)

        trainer = trainer_of(tmp_path / expected.__name__, 6)
        trainer.model.encoder.register_forward_pre_hook(fails)
        with pytest.raises(expected):
            trainer.run()


def test_predictions_run_in_smaller_parts_when_memory_runs_out(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 6)
    trainer.run()
    prepared = Prepared(tmp_path / "data" / "prepared")
    split, device = prepared.split("train"), torch.device("cpu")
    whole = predict(trainer.model, split, prepared, device=device)
    trainer.model.encoder.register_forward_pre_hook(_fits(1))
    np.testing.assert_allclose(predict(trainer.model, split, prepared, device=device), whole, atol=1e-5)
    trainer.model.encoder.register_forward_pre_hook(_fits(0))
    with pytest.raises(OutOfMemory, match="One row of up to"):
        predict(trainer.model, split, prepared, device=device)


def test_predictions_use_the_rows_that_fit_a_cpu_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, 6)
    trainer.run()
    prepared = Prepared(tmp_path / "data" / "prepared")
    split, device, seen = prepared.split("train"), torch.device("cpu"), []
    whole = predict(trainer.model, split, prepared, device=device)
    trainer.model.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    monkeypatch.setattr("tlm_core.training.memory.memory_limit", lambda: 0)
    parts = predict(trainer.model, split, prepared, device=device)
    assert len(seen) > 1 and set(seen) == {1}
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_row_that_exceeds_memory_fails_with_a_remedy(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 6)
    trainer.model.encoder.register_forward_pre_hook(_fits(0))
    with pytest.raises(OutOfMemory, match=r"Step 1: .* smaller model\.max_length"):
        trainer.run()


def test_non_finite_task_batch_names_its_rows(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 10, joint__rho1=0)
    with torch.no_grad():
        trainer.model.get_parameter("task.out.bias")[0] = float("inf")
    with pytest.raises(NonFiniteLoss, match="train:"):
        trainer.run()
