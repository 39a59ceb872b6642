"""The short measurement of a device's training speed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tlm_core.training import speed


def test_measurement_names_the_device_and_returns_a_plausible_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    assert speed.device_kind(gpu=False).endswith(" CPUs")
    assert 1e-14 < speed.seconds_per_flop("fp32", gpu=False) < 1e-7


def test_measurement_ends_after_two_slow_steps_and_returns_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*times: float) -> float:
        on_all, on_one = iter(times), iter(times)
        clocks = SimpleNamespace(perf_counter=lambda: next(on_all), process_time=lambda: next(on_one))
        monkeypatch.setattr(speed, "time", clocks)
        return speed.seconds_per_flop("fp32", gpu=False)

    slow_first, slow_last = measured(0, 0, 20, 20, 22, 22), measured(0, 0, 2, 2, 22, 22)
    assert slow_first == slow_last == pytest.approx(measured(0, 0, 0.4, 0.4, 0.8, 0.8, 0.8, 1, 1) * 10)


def test_busy_cores_do_not_slow_the_measurement_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(on_all: float, on_one: float) -> float:
        walls, cpu = (iter([0, 0, each, each, 2 * each, 2 * each]) for each in (on_all, on_one))
        clocks = SimpleNamespace(perf_counter=lambda: next(walls), process_time=lambda: next(cpu))
        monkeypatch.setattr(speed, "time", clocks)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        return speed.seconds_per_flop("fp32", gpu=False)

    assert measured(40.0, 2.0) == measured(2.0, 40.0) == pytest.approx(measured(40.0, 40.0) / 20)
