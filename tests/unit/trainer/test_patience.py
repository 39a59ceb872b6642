"""How long a worker waits for Redis and the storage between two steps of a stage."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from services.trainer.patience import patiently
from tlm_core.errors import NotFound, StoreUnavailable
from tlm_core.pulse import PULSE


class Clock:
    """A clock that sleeping moves. waits: what the progress counter was before each wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.waits = 0.0, list[tuple[float, int]]()
        monkeypatch.setattr("tenacity.time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        self.waits.append((seconds, PULSE.count))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_outage_of_almost_ten_minutes_costs_no_attempt(clock: Clock) -> None:
    def call() -> str:
        if clock.now < 590:
            raise StoreUnavailable("Redis does not answer.")
        return "value"

    assert patiently(call) == "value"
    seconds, counts = zip(*clock.waits, strict=True)
    assert max(seconds) <= 10 and len(set(counts)) == len(counts), "Each wait is short, and counts as progress."


def test_longer_outage_ends_the_attempt_after_ten_minutes(clock: Clock) -> None:
    def call() -> None:
        raise StoreUnavailable("Redis does not answer.")

    with pytest.raises(StoreUnavailable):
        patiently(call)
    assert 590 <= clock.now <= 610


def test_other_errors_are_not_repeated(clock: Clock) -> None:
    def call() -> None:
        raise NotFound("missing")

    with pytest.raises(NotFound):
        patiently(call)
    assert clock.waits == []
