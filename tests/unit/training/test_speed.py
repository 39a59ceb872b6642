"""The short measurement of a device's training speed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tlm_core.training import speed


def test_measurement_names_the_device_and_returns_a_plausible_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    assert speed.device_kind(gpu=False).endswith(" CPUs")
    assert 1e-14 < speed.seconds_per_flop("fp32", gpu=False) < 1e-7


def test_measurement_ends_after_two_slow_steps_and_returns_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*times: float) -> float:
        clock = iter(times)
        monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        return speed.seconds_per_flop("fp32", gpu=False)

    slow_first, slow_last = measured(0, 0, 20, 20, 22, 22), measured(0, 0, 2, 2, 22, 22)
    assert slow_first == slow_last == pytest.approx(measured(0, 0, 0.4, 0.4, 0.8, 0.8, 0.8, 1, 1) * 10)
