"""An event that records waits instead of waiting."""

from __future__ import annotations

import threading


class NoWait(threading.Event):
    """Records the length of each wait and returns at once. `clock` returns the sum of the lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0)
        return self.is_set()

    def clock(self) -> float:
        return sum(self.waits)
