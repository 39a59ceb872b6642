"""The training loop: seed-fixed losses, budgets, reports, and the clock."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.killed import run_of
from tests.unit.training.made import made_prepared, tiny, trainer_of
from tlm_core.pulse import PULSE
from tlm_core.training import loop
from tlm_core.training.local import LocalCheckpoints, LocalReporter
from tlm_core.training.loop import Trainer

pytestmark = pytest.mark.usefixtures("report_at_every_step")
STEPS = 12

# Of steps 0, 3 and 11: loss of masked language modeling, task loss (one step in four), gradient norm.
HELD: dict[str, tuple[dict[str, Any], list[tuple[float, float | None, float]]]] = {
    "muon": ({}, [(5.14166, None, 0.57759), (5.05145, 1.09861, 0.71428), (5.02615, 1.10462, 0.90610)]),
    "adamw": (
        {"joint__optimizer__name": "adamw"},
        [(5.14166, None, 0.57759), (5.05154, 1.09861, 0.70612), (5.02525, 1.10187, 0.90813)],
    ),
    "bert": (
        {"joint__optimizer__name": "adamw", "model__architecture": "bert"},
        [(5.11942, None, 1.13722), (5.06555, 1.09799, 0.64736), (4.98481, 1.11038, 0.53322)],
    ),
    "bag of words": (
        {"joint__bag_of_words": True},
        [(5.14166, None, 0.68538), (5.07206, 1.09861, 0.83882), (5.02145, 1.10855, 0.98918)],
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_seed_fixed_tiny_losses_do_not_change(name: str, tmp_path: Path) -> None:
    """A refactoring must not change these values; a change of the method must."""
    over, held = HELD[name]
    own = {"joint__bag_of_words": False} | over
    recipe = tiny(precision="fp32", joint__budget__steps=STEPS, joint__rho1=3, **own)
    out = run_of(tmp_path / "run", made_prepared(tmp_path / "data", recipe), recipe)()
    points = json.loads((out / "history.json").read_text())["points"]
    close = 5e-5  # processors differ in the order of sums
    for step, (mlm, task, norm) in zip((0, 3, 11), held, strict=True):
        assert points[step]["mlm"] == pytest.approx(mlm, abs=close)
        assert points[step]["task"] == (None if task is None else pytest.approx(task, abs=close))
        assert points[step]["gradient_norm"] == pytest.approx(norm, abs=100 * close if step == 11 else 10 * close)


@pytest.mark.parametrize(
    ("validations", "best"),
    [([(None, 3.0), (None, 1.0), (None, 2.0)], 1), ([(None, 1.0), (0.0, 3.0), (None, 0.5)], 1)],
)
def test_lowest_loss_is_best_if_no_validation_has_a_score(
    validations: list[tuple[float | None, float]], best: int, tmp_path: Path
) -> None:
    trainer, results = trainer_of(tmp_path, 2), iter(validations)
    trainer.validate = lambda _: dict(zip(("score", "loss"), next(results), strict=True))
    trainer.evaluate_at = frozenset({0, 1, 2})
    state, _ = trainer.run()
    assert state.best == best


@pytest.mark.parametrize("unit", ["steps", "tokens", "flops", "seconds"])
def test_every_budget_ends_within_a_step_at_a_low_rate(unit: str, tmp_path: Path) -> None:
    ticks = itertools.count()
    trial = trainer_of(tmp_path / "trial", 10, clock=lambda: float(next(ticks)))
    spent, _ = trial.run()
    amount = float(getattr(spent, "step" if unit == "steps" else unit))
    trainer = trainer_of(tmp_path / "run", clock=lambda: float(next(ticks)), **{f"joint__budget__{unit}": amount})
    state, _ = trainer.run()
    assert abs(state.step - 10) <= 1
    rates = [point["rate"] for point in state.points]
    assert rates[-1] is not None and rates[-1] < 0.15
    assert max(rate for rate in rates if rate is not None) > 0.9


def test_points_are_limited_per_second_and_hold_mean_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = trainer_of(tmp_path / "every", 60, joint__rho1=9)
    every.run()
    monkeypatch.setattr("tlm_core.training.loop.REPORT_SECONDS", 0.5)
    time = itertools.count(step=0.05)
    trainer = trainer_of(tmp_path / "run", 60, clock=lambda: float(next(time)), joint__rho1=9)
    trainer.run()
    reporter, every_report = trainer.ctx.report, every.ctx.report
    assert isinstance(reporter, LocalReporter) and isinstance(every_report, LocalReporter)
    assert reporter.steps == list(range(1, 61)), "every step checks for a stop request"
    points = reporter.points
    assert 3 <= len(points) <= next(time) / 0.5 + 1
    assert points[-1]["tokens_per_second"] > 0 and points[-1]["gflops_per_second"] > 0
    for before, point in itertools.pairwise(points):
        for term in ("mlm", "task"):
            losses = [p[term] for p in every_report.points[before["step"] : point["step"]] if p[term] is not None]
            assert point[term] == (pytest.approx(sum(losses) / len(losses)) if losses else None)
    assert any(point["task"] is not None for point in points), "one step in ten is a task step"


def test_long_series_becomes_thin_but_keeps_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlm_core.training.loop.REPORT_SECONDS", 5.0)
    time = itertools.count(step=5.0)
    trainer = trainer_of(tmp_path, 150, clock=lambda: float(next(time)))
    trainer.run()
    reporter = trainer.ctx.report
    assert isinstance(reporter, LocalReporter)
    steps = [point["step"] for point in reporter.points if "mlm" in point]
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert steps[:5] == [1, 2, 3, 4, 5] and max(gaps) > 1


def test_series_has_learning_rate_and_gradient_norm(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 10)
    state, _ = trainer.run()
    reporter = trainer.ctx.report
    assert isinstance(reporter, LocalReporter)
    peak = trainer.optimizer.recipe.lr
    assert [entry["learning_rate"] for entry in reporter.points] == [peak * point["rate"] for point in state.points]
    assert [entry["gradient_norm"] for entry in reporter.points] == [point["gradient_norm"] for point in state.points]


def test_reported_total_of_steps_is_steady(tmp_path: Path) -> None:
    """Steps on passages have more tokens than steps on task texts, so the expected number of steps varies."""
    trainer = trainer_of(tmp_path, joint__rho1=3, joint__budget__tokens=20_000)
    state, _ = trainer.run()
    reporter = trainer.ctx.report
    assert isinstance(reporter, LocalReporter)
    totals = [total for total, _ in itertools.groupby(reporter.totals)]
    assert totals[-1] == state.step and len(totals) <= 3 < state.step / 4
    assert all(step <= total for step, total in zip(reporter.steps, reporter.totals, strict=True))


def test_untrained_loss_is_reported_as_none(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 4, joint__rho1=1, joint__rho2=0)
    state, _ = trainer.run()
    assert [point["mlm"] is None for point in state.points] == [False, True, False, True]
    assert [point["task"] is None for point in state.points] == [True, False, True, False]


def test_utilization_counts_only_what_the_model_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlm_core.training.loop.peak_flops", lambda _: 1e12)
    ticks = itertools.count()
    trainer = trainer_of(tmp_path, 4, clock=lambda: float(next(ticks)))
    trainer.run()
    assert isinstance(trainer.ctx.report, LocalReporter) and trainer.needed_flops is not None
    before, point = trainer.ctx.report.points[-2:]
    batch = trainer.batches(3, 0.75)
    seconds = trainer.step_flops(batch) + trainer.optimizer.flops
    seconds /= point["gflops_per_second"] * 1e9
    assert point["mfu"] == pytest.approx(trainer.needed_flops(batch) / seconds / 1e12)
    assert point["hardware_utilization"] == pytest.approx(point["gflops_per_second"] * 1e9 / 1e12)
    assert trainer.needed_flops(batch) < trainer.step_flops(batch), "attention across documents is not needed"
    assert before["step"] == 3


def test_stage_seconds_include_checkpoints_and_validation(tmp_path: Path) -> None:
    now = [0.0]

    class Slow(LocalCheckpoints):
        def save(self, write: Callable[[Path], None], *, step: int, metrics: Mapping[str, float | None]) -> None:
            now[0] += 7.0
            super().save(write, step=step, metrics=metrics)

    def validate(_: Trainer) -> dict[str, float | None]:
        now[0] += 5.0
        return {"score": 0.5, "loss": 1.0, "accuracy": 0.5}

    slow = Slow(tmp_path / "slow")
    trainer = trainer_of(tmp_path, 4, clock=lambda: now[0], checkpoints=slow, checkpoint_steps=2)
    trainer.validate, trainer.evaluate_at = validate, frozenset({0, 4})
    state, _ = trainer.run()
    assert state.seconds == 5 + 7 + 5


def test_long_wait_for_another_worker_is_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        looks = 0

        def query(self) -> bool:
            self.looks += 1
            return self.looks > 3

    for patience, shared, warm in ((60.0, True, True), (0.0, True, False), (0.0, False, True)):
        monkeypatch.setattr(loop, "PATIENCE", patience)
        with PULSE.pace(steady=True):
            PULSE.warm_up()
            event = Event()
            loop.await_device(event, shared=shared)
            assert (event.looks, PULSE.warm) == (4, warm)
