"""The short measurement of a device's training speed."""

from __future__ import annotations

import pytest

from tlm_core.training import speed


def test_measurement_names_the_device_and_returns_a_plausible_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    assert speed.device_kind(gpu=False).endswith(" CPUs")
    assert 1e-14 < speed.seconds_per_flop("fp32", gpu=False) < 1e-7
