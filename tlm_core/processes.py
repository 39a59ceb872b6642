"""Run functions in other processes, because some libraries cannot run in parallel in one process."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_long
from dataclasses import dataclass
from typing import TypeVar

from tlm_core.errors import WorkerLost
from tlm_core.pulse import PULSE

T = TypeVar("T")

_BEAT = 1.0  # seconds between two readings of the CPU time of a process
_BUSY = 0.1  # CPU seconds between two readings that count as progress


@dataclass(frozen=True)
class Processes:
    """`count` processes that end with this process, even if it is killed. beats: how often one of them was busy."""

    count: int
    pool: ProcessPoolExecutor
    beats: c_long

    def call(self, function: Callable[..., T], *args: object) -> T:
        """Return the result of the function, which runs in another process. Several threads may call this method.

        The CPU time of the other processes counts as progress of this process.
        Raises what the function raises, and WorkerLost if a process is killed.
        """
        try:
            future, before = self.pool.submit(function, *args), self.beats.value
            while not wait([future], _BEAT).done:
                if self.beats.value != before:
                    before = self.beats.value
                    PULSE.advance()
            return future.result()
        except BrokenProcessPool as error:
            message = "A process of the worker was killed. If this recurs, check whether its memory suffices."
            raise WorkerLost(message) from error


@contextmanager
def processes(count: int, initialize: Callable[[], object] | None = None) -> Iterator[Processes]:
    """Yield new processes. At the end of the block, wait for their calls and end them. initialize: called in each one.

    Each process starts a new interpreter, because a fork is unsafe if this process runs threads. It imports the main
    module of this process, so a script needs `if __name__ == "__main__":`.
    """
    context = multiprocessing.get_context("spawn")
    beats = context.RawValue(c_long, 0)
    with ProcessPoolExecutor(count, context, initializer=_start, initargs=(beats, initialize)) as pool:
        yield Processes(count, pool, beats)


def _start(beats: c_long, initialize: Callable[[], object] | None) -> None:
    threading.Thread(target=_watch, args=(beats,), daemon=True).start()
    if initialize:
        initialize()


def _watch(beats: c_long) -> None:
    """Count the beats of this process, and end it with its parent."""
    parent, used = multiprocessing.parent_process(), time.process_time()
    while parent is not None and parent.is_alive():
        parent.join(_BEAT)
        if time.process_time() > used + _BUSY:
            used = time.process_time()
            beats.value += 1
    os._exit(1)
