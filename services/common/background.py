"""Background tasks, which repeat a function in rounds. After an error, a task continues with the next item or round.

`/readyz` and the metrics show the error. An outage of a component does not count as an error of the task: the task
waits for the next round.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.common.logs import log_context
from services.common.metrics import FAILING, SKIPPED
from tlm_core.errors import Unavailable

log = logging.getLogger(__name__)

_MAX_DELAY_SECONDS = 60.0
_FIRST_SECONDS = 600.0  # longest wait for the first round, because a process may restart before a long period ends
_MAX_SKIPPED = 1000  # items that a task remembers, so that it logs each item once


@dataclass
class Background:
    """A repeated task and its condition.

    - failures: failed rounds since the last complete round. waiting: whether an outage ended the last round.
    - error: the error of the last failed round, or why the task has stopped, or "". skipped: item name → its error.
    - stopped: whether the task has ended. A stopped task starts again when the process restarts.
    """

    name: str
    failures: int = 0
    waiting: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    error: str = ""
    stopped: bool = False
    _seen: set[str] = field(default_factory=set)  # items of this round

    @contextmanager
    def running(self) -> Iterator[None]:
        """Report the task as running inside the block, and as stopped after the block."""
        self.error, self.stopped = "", False
        FAILING.labels(self.name).set(0)
        try:
            yield
        finally:
            self.error, self.stopped = self.error or "it has stopped", True
            FAILING.labels(self.name).set(1)

    def start(self, work: Callable[[], object], seconds: float, stop: threading.Event) -> threading.Thread:
        """Call `repeat` in a new daemon thread, and return the thread."""
        thread = threading.Thread(target=self.repeat, args=(work, seconds, stop), name=self.name, daemon=True)
        thread.start()
        return thread

    def repeat(self, work: Callable[[], object], seconds: float, stop: threading.Event) -> None:
        """Call `work` every `seconds` until `stop` is set. The first call waits at most 600 s. Failures delay calls."""
        with self.running():
            delay = min(seconds, _FIRST_SECONDS)
            while not stop.wait(delay):
                with self.round():
                    work()
                delay = self.delay(seconds)

    @contextmanager
    def round(self) -> Iterator[None]:
        """Run the block as one round of the task. Catch and log its error, and update the fields of the task.

        Unavailable does not count as a failure: the task waits, and logs only the first round of a wait. A round
        without error deletes from `skipped` the items that it did not visit: another process has finished them.
        """
        self._seen.clear()
        try:
            yield
        except Unavailable as error:
            if not self.waiting:
                log.warning("Background task '%s' waits: %s", self.name, error)
            self.waiting = True
        except Exception as error:
            log.exception("Background task '%s' failed and tries again", self.name)
            self.waiting = False
            self.failures += 1
            self.error = f"{type(error).__name__}: {error}"
        else:
            if self.waiting or self.error:
                log.info("Background task '%s' works again", self.name)
            self.failures, self.error, self.waiting = 0, "", False
            self.skipped = {name: error for name, error in self.skipped.items() if name in self._seen}
        FAILING.labels(self.name).set(bool(self.error))
        SKIPPED.labels(self.name).set(len(self.skipped))

    @contextmanager
    def item(self, name: str, **ids: object) -> Iterator[None]:
        """Run the block for one item of a round. Catch an error, log it once, and add the item to `skipped`.

        ids: fields for the log lines of the block, such as job_id. Raises Unavailable if a component does not answer.
        """
        self._seen.add(name)
        with log_context(**ids):
            try:
                yield
            except Unavailable:
                raise
            except Exception as error:
                if name not in self.skipped:
                    log.exception("Background task '%s' skipped %s", self.name, name)
                if len(self.skipped) < _MAX_SKIPPED:
                    self.skipped[name] = f"{type(error).__name__}: {error}"
            else:
                self.skipped.pop(name, None)

    def delay(self, seconds: float) -> float:
        """Return the seconds until the next round: `seconds`, doubled for each failure, up to max(60, `seconds`)."""
        return min(max(_MAX_DELAY_SECONDS, seconds), seconds * 2.0 ** min(self.failures, 10))

    @property
    def condition(self) -> str:
        """The state of the task in the response of `/readyz`: "ok", or a sentence with the error of the task."""
        if self.error:
            return f"The task '{self.name}' fails: {self.error}. Read the log."
        return "ok"


def conditions(tasks: Iterable[Background]) -> dict[str, str]:
    """Return name → `Background.condition` for each task."""
    return {task.name: task.condition for task in tasks}


def check_running(tasks: Iterable[Background]) -> None:
    """Raise Unavailable if a task has stopped. A task that fails and tries again raises nothing."""
    for task in tasks:
        if task.stopped:
            raise Unavailable(f"The task '{task.name}' has stopped. Restart the process.")


def stopped_by_signals() -> threading.Event:
    """Return an event that is set after SIGTERM or SIGINT.

    A new thread sets the event, because the interrupted code may hold the lock of the event.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=stop.set, daemon=True).start())
    return stop
