"""Measure the time since the last progress of this process, and compute a limit for this time."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tlm_core.pulse import PULSE, Pulse

FIRST_SECONDS = 600.0  # limit without a median interval: in the first steps, and in work that is not steady
LEAST_SECONDS = 30.0
INTERVALS = 10  # a steady process may pause this many times its median interval
BUSY = 0.1  # In work that is not steady, the use of this share of a CPU counts as progress.
BUSY_SECONDS = 3600.0  # The use of the CPU counts for this long after the last advance of the counter.


@dataclass
class Liveness:
    """Measures the seconds without progress of this process. Call `sample` at least every few seconds."""

    pulse: Pulse = field(default_factory=lambda: PULSE)
    clock: Callable[[], float] = time.monotonic
    cpu: Callable[[], float] = time.process_time

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget the measured intervals between changes of the counter. Count seconds without progress from now on."""
        self._phase, self._count, self._cpu = self.pulse.phase, self.pulse.count, self.cpu()
        self._advanced = self._counted = self._sampled = self.clock()
        self._intervals: deque[float] = deque(maxlen=100)

    def sample(self) -> tuple[float, float]:
        """Return the seconds since the last progress, and the limit above which the process counts as hung."""
        if self.pulse.phase != self._phase:
            self.restart()
        now, count, cpu = self.clock(), self.pulse.count, self.cpu()
        if count != self._count:
            self._intervals.append((now - self._advanced) / (count - self._count))
            self._counted = now
        busy = not self.pulse.steady and cpu - self._cpu > BUSY * (now - self._sampled)
        if count != self._count or (busy and now - self._counted < BUSY_SECONDS):
            self._advanced = now
        self._count, self._cpu, self._sampled = count, cpu, now
        return now - self._advanced, self._limit()

    def _limit(self) -> float:
        if not (self.pulse.steady and self.pulse.warm) or len(self._intervals) < 3:
            return FIRST_SECONDS
        return max(LEAST_SECONDS, INTERVALS * statistics.median(self._intervals))
