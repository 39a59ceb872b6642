"""The progress counter of this process. Code that computes, reads or writes advances the counter.

When a stage hangs, the counter stops, so the service detects the hang. Heartbeats do not stop, because their thread
continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fsspec.callbacks import Callback


class Pulse:
    """Counts completed units of work of all kinds: rows, batches, blocks of bytes, steps.

    phase: a number that increases when `steady` or `warm` changes. steady: whether the counter now advances at regular
    intervals. If not, CPU time counts as progress too, because calls into libraries advance no counter. warm: whether
    the first step has ended. The first step is slow, because it builds kernels and waits for other workers.
    """

    def __init__(self) -> None:
        self.count = self.phase = 0
        self.steady = self.warm = False

    def advance(self) -> None:
        self.count += 1

    @contextmanager
    def pace(self, *, steady: bool) -> Iterator[None]:
        """Set `steady`, and set `warm` to False. Restore both after the block. For the main thread of a stage only."""
        before = self.steady, self.warm
        self.steady, self.warm = steady, False
        self.phase += 1
        try:
            yield
        finally:
            self.steady, self.warm = before
            self.phase += 1

    def warm_up(self) -> None:
        """Mark the end of the first step. From now on, an unusually long time without progress counts as a hang."""
        if not self.warm:
            self.warm = True
            self.phase += 1

    def cool_down(self) -> None:
        """Set `warm` to False, because the current step may take as long as the first step: a worker builds kernels."""
        if self.warm:
            self.warm = False
            self.phase += 1


class TransferPulse(Callback):  # type: ignore[misc, unused-ignore]
    """A callback for fsspec. It advances `PULSE` whenever a file system has transferred bytes."""

    def call(self, hook_name: str | None = None, **_: object) -> None:  # noqa: ARG002
        PULSE.advance()


PULSE = Pulse()
