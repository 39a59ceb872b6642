"""The progress counter: how long a process may stand still before it counts as hung."""

from __future__ import annotations

import pytest

from services.common.liveness import BUSY_SECONDS, FIRST_SECONDS, Liveness
from tlm_core.pulse import Pulse


class Clock:
    """A clock of seconds, and of CPU seconds, that a test moves."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0

    def liveness(self, pulse: Pulse) -> Liveness:
        return Liveness(pulse, clock=lambda: self.now, cpu=lambda: self.cpu)


def steps(clock: Clock, liveness: Liveness, count: int, interval: float) -> None:
    """Advance the counter `count` times, with a sample after each."""
    for _ in range(count):
        clock.now += interval
        liveness.pulse.advance()
        liveness.sample()


@pytest.mark.parametrize(("interval", "limit"), [(0.01, 30), (3, 30), (5, 50), (20, 200)])
def test_limit_of_a_steady_loop_follows_its_median_interval(interval: float, limit: float) -> None:
    clock, pulse = Clock(), Pulse()
    liveness = clock.liveness(pulse)
    with pulse.pace(steady=True):
        steps(clock, liveness, 20, 2**-10)  # micro-batches of the first step
        assert liveness.sample()[1] == FIRST_SECONDS
        pulse.warm_up()
        liveness.sample()
        steps(clock, liveness, 20, interval)
        pulse.warm_up()
        clock.now += 40
        clock.cpu += 40  # A worker that spins in a collective operation makes no progress.
        assert liveness.sample() == (pytest.approx(40), pytest.approx(limit))


def test_first_step_and_unsteady_work_may_take_ten_minutes() -> None:
    clock, pulse = Clock(), Pulse()
    liveness = clock.liveness(pulse)
    steps(clock, liveness, 20, 0.5)
    assert liveness.sample()[1] == FIRST_SECONDS
    with pulse.pace(steady=True):
        clock.now += 500
        assert liveness.sample() == (0, FIRST_SECONDS), "a new phase begins"
        clock.now += 500
        assert liveness.sample() == (500, FIRST_SECONDS)
        pulse.warm_up()
        liveness.sample()
        steps(clock, liveness, 3, 1)
        assert liveness.sample()[1] == pytest.approx(30)
    assert liveness.sample()[1] == FIRST_SECONDS


@pytest.mark.parametrize(("cpu", "idle"), [(0.5, 0.0), (0.05, 1000.0)])
def test_computing_counts_as_progress_where_the_pace_is_not_steady(cpu: float, idle: float) -> None:
    clock = Clock()
    liveness = clock.liveness(Pulse())
    for _ in range(1000):
        clock.now += 1
        clock.cpu += cpu
        liveness.sample()
    assert liveness.sample()[0] == idle


def test_computing_without_the_counter_is_progress_for_an_hour_only() -> None:
    clock = Clock()
    liveness = clock.liveness(Pulse())
    for _ in range(int(BUSY_SECONDS) + 700):
        clock.now += 1
        clock.cpu += 1
        liveness.sample()
    assert liveness.sample() == (pytest.approx(701), FIRST_SECONDS)
    steps(clock, liveness, 1, 1)
    assert liveness.sample()[0] == 0
