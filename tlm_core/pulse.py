"""The progress counter of this process. All that computes, reads or writes advances it, so that a hang is noticed.

A heartbeat shows only that the process lives: the thread that sends it runs on while the training hangs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fsspec.callbacks import Callback


class Pulse:
    """Counts rows, batches, bytes and steps of all kinds together.

    phase: changes when the pace does. steady: whether the counter advances at regular intervals now. Otherwise CPU
    time counts as progress too, because calls into libraries, such as the fit of a linear model, advance no counter.
    warm: whether the first step at this pace has ended. It builds kernels and waits for other workers to start.
    """

    def __init__(self) -> None:
        self.count = self.phase = 0
        self.steady = self.warm = False

    def advance(self) -> None:
        self.count += 1

    @contextmanager
    def pace(self, *, steady: bool) -> Iterator[None]:
        """Set `steady` inside the block. Only the main thread of a stage may call it."""
        before = self.steady, self.warm
        self.steady, self.warm = steady, False
        self.phase += 1
        try:
            yield
        finally:
            self.steady, self.warm = before
            self.phase += 1

    def warm_up(self) -> None:
        """End the first step. The intervals count from here."""
        if not self.warm:
            self.warm = True
            self.phase += 1

    def cool_down(self) -> None:
        """Let the current step be as long as a first one, because it builds kernels too."""
        if self.warm:
            self.warm = False
            self.phase += 1


class TransferPulse(Callback):  # type: ignore[misc, unused-ignore]
    """Advances the counter with the bytes that a file system transfers."""

    def call(self, hook_name: str | None = None, **_: object) -> None:  # noqa: ARG002
        PULSE.advance()


PULSE = Pulse()
