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
    """A pool of `count` child processes, which end with this process, even if it is killed.

    beats: a counter that the child processes increment while they use the CPU.
    """

    count: int
    pool: ProcessPoolExecutor
    beats: c_long

    def call(self, function: Callable[..., T], *args: object) -> T:
        """Run `function(*args)` in a child process and return its result. Several threads may call this method.

        Meanwhile, CPU time of the child processes counts as progress of this process.
        Raises the errors of the function, and WorkerLost if a child process is killed.
        """
        try:
            future, before = self.pool.submit(function, *args), self.beats.value
            while not wait([future], _BEAT).done:
                if self.beats.value != before:
                    before = self.beats.value
                    PULSE.advance()
            return future.result()
        except BrokenProcessPool as error:
            message = "A child process of a worker was killed. If this recurs, check whether the memory suffices."
            raise WorkerLost(message) from error


@contextmanager
def processes(count: int, initialize: Callable[[], object] | None = None) -> Iterator[Processes]:
    """Yield `count` child processes. When the block ends, wait for their calls, then end them.

    initialize: a function that each child process calls first. Each child is a new interpreter, because a fork is
    unsafe if this process runs threads. A child imports the main module, which thus needs `if __name__ == "__main__":`.
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
    """Increment `beats` while this process uses the CPU, and end this process when its parent process ends."""
    parent, used = multiprocessing.parent_process(), time.process_time()
    while parent is not None and parent.is_alive():
        parent.join(_BEAT)
        if time.process_time() > used + _BUSY:
            used = time.process_time()
            beats.value += 1
    os._exit(1)
