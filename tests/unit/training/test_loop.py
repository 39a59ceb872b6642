"""The loop: exact resume, budgets, stop requests, faults."""

from __future__ import annotations

import itertools
import json
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.training.killed import DyingReporter, Killed, Run, content
from tests.unit.training.made import made_prepared, tiny
from tlm_core.errors import CorruptArtifact, NonFiniteLoss, OutOfMemory, StorageFull
from tlm_core.training.evaluate import predict
from tlm_core.training.local import LocalCheckpoints, LocalReporter
from tlm_core.training.loop import Budget, Trainer
from tlm_core.training.optim import Optimizer
from tlm_core.training.params import stage_params
from tlm_core.training.prepared import Batch, JointBatches, Prepared
from tlm_core.training.recipe import Recipe
from tlm_core.training.stage import StageContext, StopRequested
from tlm_core.training.stages import build
from tlm_core.training.state import TrainState, checkpoint_writer, load_checkpoint

STEPS = 12


def run_of(
    folder: Path, prepared: Path, recipe: Recipe, stage: str = "joint", inputs: Mapping[str, Path] | None = None
) -> Run:
    return Run(folder, stage, {"prepared": prepared, **(inputs or {})}, stage_params(stage, recipe, 5))


@pytest.fixture(autouse=True)
def report_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlm_core.training.loop.REPORT_SECONDS", 0.0)


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
def test_killed_and_resumed_equals_never_killed_bit_for_bit(
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


def test_a_run_killed_between_checkpoints_repeats_the_lost_steps_exactly(tmp_path: Path) -> None:
    recipe = tiny(checkpoint_steps=5)
    prepared = made_prepared(tmp_path / "data", recipe)
    whole = content(run_of(tmp_path / "whole", prepared, recipe)())
    killed = run_of(tmp_path / "killed", prepared, recipe)
    for step in (3, 8, 9):
        with pytest.raises(Killed):
            killed(DyingReporter(die_at=step))
    assert [path.name for path in (tmp_path / "killed/checkpoints").iterdir()] == ["step-000000005"]
    assert content(killed()) == whole


def test_twenty_deaths_at_random_steps_leave_no_trace(tmp_path: Path) -> None:
    recipe = tiny(checkpoint_steps=3, joint__budget__steps=60)
    prepared = made_prepared(tmp_path / "data", recipe)
    whole = content(run_of(tmp_path / "whole", prepared, recipe)())
    killed = run_of(tmp_path / "killed", prepared, recipe)
    for step in sorted(np.random.default_rng(2).choice(np.arange(1, 60), 20, replace=False)):
        with pytest.raises(Killed):
            killed(DyingReporter(die_at=int(step)))
    assert content(killed()) == whole


def test_a_killed_finetune_keeps_its_best_evaluation(tmp_path: Path) -> None:
    recipe = tiny(checkpoint_steps=1, finetune__evaluations=6, finetune__epochs=4)
    prepared = made_prepared(tmp_path / "data", recipe)
    inputs = {"joint": run_of(tmp_path / "joint", prepared, recipe)()}
    whole = content(run_of(tmp_path / "whole", prepared, recipe, "finetune", inputs)())
    killed = run_of(tmp_path / "killed", prepared, recipe, "finetune", inputs)
    for step in (2, 6, 11):
        with pytest.raises(Killed):
            killed(DyingReporter(die_at=step))
    found = content(killed())
    assert found == whole
    assert found["history"]["evaluations"][0]["step"] == 0


def test_a_stop_request_is_honoured_within_one_step_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    recipe = tiny(checkpoint_steps=1000)
    prepared = made_prepared(tmp_path / "data", recipe)
    whole = content(run_of(tmp_path / "whole", prepared, recipe)())
    run = run_of(tmp_path / "stopped", prepared, recipe)
    with pytest.raises(StopRequested):
        run(LocalReporter(keep_going=lambda step: step < 4))
    assert [path.name for path in (tmp_path / "stopped/checkpoints").iterdir()] == ["step-000000005"]
    assert content(run()) == whole


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    recipe, other = tiny(checkpoint_steps=1), tiny(checkpoint_steps=1, model__intermediate=64)
    prepared = made_prepared(tmp_path / "data", recipe)
    with pytest.raises(Killed):
        run_of(tmp_path / "run", prepared, recipe)(DyingReporter(die_at=3))
    with pytest.raises(CorruptArtifact, match=r"is \(.*\), not \("):
        run_of(tmp_path / "run", prepared, other)()


# Of steps 0, 3 and 11: loss of masked language modelling, of the task (of four steps one has it), norm of the gradient.
HELD: dict[str, tuple[dict[str, Any], list[tuple[float, float | None, float]]]] = {
    "muon": ({}, [(5.14166, None, 0.60277), (5.07214, 1.09861, 0.93229), (4.96279, 1.10322, 0.84254)]),
    "adamw": (
        {"joint__optimizer__name": "adamw"},
        [(5.14166, None, 0.60277), (5.07233, 1.09861, 0.93498), (4.96251, 1.10555, 0.83130)],
    ),
    "bert": (
        {"joint__optimizer__name": "adamw", "model__architecture": "bert"},
        [(5.14305, None, 1.12999), (5.06660, 1.09778, 0.67232), (4.97799, 1.11003, 0.59952)],
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_the_seed_fixed_tiny_losses_stay_what_they_were(name: str, tmp_path: Path) -> None:
    """A refactor must not move these values; a change of method says so by changing them."""
    over, held = HELD[name]
    recipe = tiny(precision="fp32", joint__budget__steps=STEPS, joint__rho1=3, **over)
    out = run_of(tmp_path / "run", made_prepared(tmp_path / "data", recipe), recipe)()
    points = json.loads((out / "history.json").read_text())["points"]
    # Processors sum in orders of their own, and Muon rounds to bfloat16 where there are instructions for it.
    close = 2e-4 if name == "muon" else 5e-5
    for step, (mlm, task, norm) in zip((0, 3, 11), held, strict=True):
        assert points[step]["mlm"] == pytest.approx(mlm, abs=close)
        assert points[step]["task"] == (None if task is None else pytest.approx(task, abs=close))
        assert points[step]["gradient_norm"] == pytest.approx(norm, abs=100 * close if step == 11 else 10 * close)


def trainer_of(folder: Path, budget: Budget, clock: Callable[[], float], **over: Any) -> Trainer:
    recipe = tiny(precision="fp32", **over)
    prepared = Prepared(made_prepared(folder / "data", recipe))
    model = build(recipe.model.model_dump(), prepared, 0)
    joint = recipe.joint.model_dump()
    reporter, checkpoints = LocalReporter(), LocalCheckpoints(folder / "checkpoints")
    return Trainer(
        ctx=StageContext(inputs={}, params={}, out=folder, report=reporter, checkpoints=checkpoints, scratch=folder),
        model=model,
        optimizer=Optimizer(model, joint["optimizer"], ("encoder", "vocabulary", "task")),
        optimizer_recipe=joint["optimizer"],
        batches=JointBatches(prepared, joint, 0),
        budget=budget,
        seed=0,
        precision="fp32",
        checkpoint_steps=1000,
        device=torch.device("cpu"),
        clock=clock,
    )


@pytest.mark.parametrize("unit", ["steps", "tokens", "flops", "seconds"])
def test_every_budget_is_kept_to_within_a_step_with_the_rate_decayed_to_near_zero(unit: str, tmp_path: Path) -> None:
    ticks = itertools.count()
    trial = trainer_of(tmp_path / "trial", Budget("steps", 10), lambda: float(next(ticks)))
    spent, _ = trial.run()
    amount = float(getattr(spent, "step" if unit == "steps" else unit))
    trainer = trainer_of(tmp_path / "run", Budget(unit, amount), lambda: float(next(ticks)))
    state, _ = trainer.run()
    assert abs(state.step - 10) <= 1
    rates = [point["rate"] for point in state.points]
    assert rates[-1] is not None and rates[-1] < 0.15
    assert max(rate for rate in rates if rate is not None) > 0.9


def test_points_are_at_most_two_a_second_and_tell_rate_and_mean_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = trainer_of(tmp_path / "every", Budget("steps", 60), lambda: 0.0, joint__rho1=9)
    every.run()
    monkeypatch.setattr("tlm_core.training.loop.REPORT_SECONDS", 0.5)
    time = itertools.count(step=0.05)
    trainer = trainer_of(tmp_path / "run", Budget("steps", 60), lambda: float(next(time)), joint__rho1=9)
    trainer.run()
    reporter, told = trainer.ctx.report, every.ctx.report
    assert isinstance(reporter, LocalReporter) and isinstance(told, LocalReporter)
    assert reporter.steps == list(range(1, 61)), "a stop request is asked for at every step"
    points = reporter.points
    assert 3 <= len(points) <= next(time) / 0.5 + 1
    assert points[-1]["tokens_per_second"] > 0 and points[-1]["gflops_per_second"] > 0
    for before, point in itertools.pairwise(points):
        for term in ("mlm", "task"):
            losses = [one[term] for one in told.points[before["step"] : point["step"]] if one[term] is not None]
            assert point[term] == (pytest.approx(sum(losses) / len(losses)) if losses else None)
    assert any(point["task"] is not None for point in points), "one step in ten has it"


def test_the_series_tells_the_learning_rate_and_the_gradient_s_norm(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Budget("steps", 10), lambda: 0.0)
    state, _ = trainer.run()
    reporter = trainer.ctx.report
    assert isinstance(reporter, LocalReporter)
    peak = trainer.optimizer_recipe["lr"]
    assert [one["learning_rate"] for one in reporter.points] == [peak * point["rate"] for point in state.points]
    assert [one["gradient_norm"] for one in reporter.points] == [point["gradient_norm"] for point in state.points]


def test_utilisation_is_told_where_the_peak_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlm_core.training.loop.peak_flops", lambda _: 1e12)
    ticks = itertools.count()
    trainer = trainer_of(tmp_path, Budget("steps", 4), lambda: float(next(ticks)))
    trainer.run()
    reporter = trainer.ctx.report
    assert isinstance(reporter, LocalReporter)
    point = reporter.points[-1]
    assert point["mfu"] == pytest.approx(point["gflops_per_second"] / 1e3)


def test_the_clock_of_a_stage_counts_its_checkpoints_and_validation(tmp_path: Path) -> None:
    now = [0.0]

    class Slow(LocalCheckpoints):
        def save(self, write: Callable[[Path], None], *, step: int, metrics: Mapping[str, float | None]) -> None:
            now[0] += 7.0
            super().save(write, step=step, metrics=metrics)

    def validate() -> dict[str, float | None]:
        now[0] += 5.0
        return {"score": 0.5, "loss": 1.0, "accuracy": 0.5}

    trainer = trainer_of(tmp_path, Budget("steps", 4), lambda: now[0])
    trainer.checkpoint_steps, trainer.validate, trainer.evaluate_at = 2, validate, frozenset({0, 4})
    trainer.ctx.checkpoints = Slow(tmp_path / "slow")
    state, _ = trainer.run()
    assert state.seconds == 5 + 7 + 5


def test_a_loss_that_is_not_a_number_names_step_and_passages_and_spares_the_weights(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Budget("steps", 10), lambda: 0.0)
    name = "vocabulary.out.bias"
    with torch.no_grad():
        trainer.model.get_parameter(name)[7] = float("nan")
    before = trainer.model.get_parameter("encoder.tokens.weight").detach().clone()
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.run()
    assert caught.value.facts["step"] == 0
    sources = caught.value.facts["sources"]
    assert len(sources) > 3 and all(len(source) == 32 for source in sources)
    assert torch.equal(before, trainer.model.get_parameter("encoder.tokens.weight"))
    assert caught.value.facts["checkpoint"] is None and "none was due" in str(caught.value)


def test_a_loss_that_is_not_a_number_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Budget("steps", 10), lambda: 0.0)
    trainer.checkpoint_steps, batches = 2, trainer.batches

    def spoiled(step: int, progress: float) -> Batch:
        if step == 5:
            with torch.no_grad():
                trainer.model.get_parameter("vocabulary.out.bias")[7] = float("nan")
        return batches(step, progress)

    trainer.batches = spoiled
    with pytest.raises(NonFiniteLoss, match="the last one is of step 4") as caught:
        trainer.run()
    assert (caught.value.facts["step"], caught.value.facts["checkpoint"]) == (5, 4)


def test_a_recipe_may_skip_steps_that_are_not_numbers_and_counts_them(tmp_path: Path) -> None:
    over = {"joint__optimizer__non_finite": "skip", "joint__rho1": 3}
    trainer = trainer_of(tmp_path, Budget("steps", 12), lambda: 0.0, **over)
    with torch.no_grad():
        trainer.model.get_parameter("task.out.bias")[0] = float("inf")
    state, _ = trainer.run()
    reporter = trainer.ctx.report
    assert isinstance(reporter, LocalReporter)
    assert state.step == 12 and state.skipped == 3
    assert [(type, data["step"]) for type, data in reporter.events] == [("step.skipped", step) for step in (3, 7, 11)]
    assert all(torch.isfinite(tensor).all() for name, tensor in trainer.model.named_parameters() if "task" not in name)


def test_a_long_run_may_skip_more_steps_than_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlm_core.training.loop.SKIPS", 2)
    for share in (0.3, 0.1):  # of steps 3, 7 and 11 the last is one too many for a tenth of the steps
        monkeypatch.setattr("tlm_core.training.loop.SKIPPED_SHARE", share)
        over = {"joint__optimizer__non_finite": "skip", "joint__rho1": 3}
        trainer = trainer_of(tmp_path / str(share), Budget("steps", 12), lambda: 0.0, **over)
        with torch.no_grad():
            trainer.model.get_parameter("task.out.bias")[0] = float("inf")
        if share == 0.3:
            assert trainer.run()[0].skipped == 3
        else:
            with pytest.raises(NonFiniteLoss, match="at step 11"):
                trainer.run()


def test_a_run_that_only_skips_ends(tmp_path: Path) -> None:
    over = {"joint__optimizer__non_finite": "skip"}
    trainer = trainer_of(tmp_path, Budget("steps", 100), lambda: 0.0, **over)
    with torch.no_grad():
        trainer.model.get_parameter("vocabulary.out.bias")[7] = float("nan")
    with pytest.raises(NonFiniteLoss, match="at step 20"):
        trainer.run()


def _fits(rows: int) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
    """A device whose memory holds so many rows."""

    def check(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if len(arguments[0]) > rows:
            raise torch.OutOfMemoryError("no room")

    return check


def test_out_of_memory_steps_down_and_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    roomy = trainer_of(tmp_path / "roomy", Budget("steps", 6), lambda: 0.0)
    plenty, _ = roomy.run()
    tight = trainer_of(tmp_path / "tight", Budget("steps", 6), lambda: 0.0)
    tight.model.encoder.register_forward_pre_hook(_fits(3))
    state, _ = tight.run()
    reporter = tight.ctx.report
    assert isinstance(reporter, LocalReporter)
    assert reporter.events == [("memory.stepped_down", {"step": 0, "rows": 2})]
    assert state.micro_rows == 2 and state.step == 6
    assert [point["mlm"] for point in state.points] == pytest.approx([p["mlm"] for p in plenty.points], rel=1e-3)
    assert (state.tokens, state.flops) == (plenty.tokens, plenty.flops)


def test_a_cpu_begins_with_the_rows_that_its_limit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, Budget("steps", 2), lambda: 0.0)
    monkeypatch.setattr("tlm_core.training.loop.memory_limit", lambda: 0)
    state, _ = trainer.run()
    assert state.micro_rows == 1


def test_memory_that_does_not_hold_the_optimiser_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Optimizer, "step", fails)
    recipe = tiny()
    with pytest.raises(OutOfMemory, match="its optimiser do not fit the device"):
        run_of(tmp_path / "run", made_prepared(tmp_path / "data", recipe), recipe)()


def test_the_error_of_a_cpu_s_allocator_is_out_of_memory_and_no_other_error_is(tmp_path: Path) -> None:
    told = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
    for message, expected in ((told, OutOfMemory), ("shapes do not match", RuntimeError)):

        def fails(*_: Any, message: str = message) -> None:
            raise RuntimeError(message)

        trainer = trainer_of(tmp_path / expected.__name__, Budget("steps", 6), lambda: 0.0)
        trainer.model.encoder.register_forward_pre_hook(fails)
        with pytest.raises(expected):
            trainer.run()


def test_predictions_are_made_in_parts_where_the_device_holds_no_more(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Budget("steps", 6), lambda: 0.0)
    trainer.run()
    prepared = Prepared(tmp_path / "data" / "prepared")
    split, device = prepared.split("train"), torch.device("cpu")
    whole = predict(trainer.model, split, prepared, device=device)
    trainer.model.encoder.register_forward_pre_hook(_fits(1))
    np.testing.assert_allclose(predict(trainer.model, split, prepared, device=device), whole, atol=1e-5)
    trainer.model.encoder.register_forward_pre_hook(_fits(0))
    with pytest.raises(OutOfMemory, match="not even one text"):
        predict(trainer.model, split, prepared, device=device)


def test_a_row_that_does_not_fit_ends_the_run_with_what_to_change(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Budget("steps", 6), lambda: 0.0)
    trainer.model.encoder.register_forward_pre_hook(_fits(0))
    with pytest.raises(OutOfMemory, match="shorter max_length"):
        trainer.run()


def test_the_source_of_a_bad_task_batch_is_told_by_row(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Budget("steps", 10), lambda: 0.0, joint__rho1=0)
    with torch.no_grad():
        trainer.model.get_parameter("task.out.bias")[0] = float("inf")
    with pytest.raises(NonFiniteLoss, match="train:"):
        trainer.run()


def test_a_checkpoint_is_of_the_moment_it_was_asked_for_however_late_it_is_written(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Budget("steps", 10), lambda: 0.0)
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
    found, _ = load_checkpoint(tmp_path / "late", trainer.model, trainer.optimizer)
    assert found.step == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    assert not any(moment.any() for moment in trainer.optimizer.state().values())


def test_no_room_for_a_checkpoint_is_told_as_such(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Budget("steps", 10), lambda: 0.0)
    write = checkpoint_writer(TrainState(), trainer.model, trainer.optimizer, None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
        with pytest.raises(StorageFull, match="no space left"):
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_has_weights_in_safetensors_and_state_in_json(tmp_path: Path) -> None:
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
