"""What a worker tells of its attempt, sent by a thread of its own so that training never waits for Redis."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from services.common.jobstore import JobStore
from tlm_core.errors import Conflict, NotFound, Unavailable
from tlm_core.jobs.plan import Node, Plan
from tlm_core.jobs.spec import Progress
from tlm_core.jobs.states import State

log = logging.getLogger(__name__)

_KEPT_WHILE_AWAY = 10_000
_LOOK = 0.1  # seconds between two looks at the job's state: a read of one field, where a report is a durable write


class JobReporter:
    """A `Reporter` (tlm_core.training.stage) over the job store.

    Sends at least every `heartbeat` seconds, which shows that the worker lives. While Redis is away or full it keeps
    what it was told and training goes on. When the attempt is over (another one runs, or the job has ended) `progress`
    answers False for good.
    """

    def __init__(
        self, store: JobStore, tenant: str, job_id: str, attempt: int, *, interval: float = 0.5, heartbeat: float = 5.0
    ) -> None:
        self._store = store
        self._job = (tenant, job_id, attempt)
        self._interval = interval
        self._heartbeat = heartbeat
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._go_on = True
        self._stale = False
        self._node: tuple[Node, Plan] | None = None
        self._progress: Progress | None = None
        self._metrics: list[Mapping[str, Any]] = []
        self._events: list[tuple[str, Mapping[str, Any]]] = []
        self._logs: list[str] = []
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    # --- what stages call ---------------------------------------------------------------------------------------

    def progress(self, *, step: int, total: int, rate: float | None, unit: str, eta_seconds: float | None) -> bool:
        """See `Reporter.progress`."""
        assert self._node is not None, "a stage reports only between start_node and the next"
        node, plan = self._node
        with self._lock:
            self._progress = Progress(
                stage=node.stage,
                node=node.name,
                step=step,
                total=total,
                rate=rate,
                unit=unit,
                eta_seconds=eta_seconds,
                nodes_done=plan.nodes.index(node),
                nodes_total=len(plan.nodes),
            )
            return self._go_on

    def metrics(self, **values: float | int | str | None) -> None:
        """See `Reporter.metrics`."""
        assert self._node is not None
        with self._lock:
            self._metrics.append({"node": self._node[0].name, "stage": self._node[0].stage, **values})

    def event(self, type: str, **data: Any) -> None:
        """See `Reporter.event`."""
        with self._lock:
            self._events.append((type, data))

    # --- what the runner calls ----------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """One line of the job's log."""
        with self._lock:
            self._logs.append(text)

    def start_node(self, node: Node, plan: Plan) -> None:
        self._node = (node, plan)
        self.progress(step=0, total=0, rate=None, unit="steps", eta_seconds=None)

    @property
    def going_on(self) -> bool:
        """False once the job has to stop or the attempt is over."""
        with self._lock:
            return self._go_on

    def close(self) -> None:
        """Send what is left and end the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        waited = self._heartbeat
        while True:
            closing = self._closed
            with self._lock:
                pending = bool(self._metrics or self._events or self._logs or self._progress)
            if pending or waited >= self._heartbeat:
                self._send()
                waited = 0.0
            if closing:
                return
            self._wait()
            waited += self._interval

    def _wait(self) -> None:
        """Until the next report may be sent; a request to stop is seen within a few steps of the smallest model."""
        for _ in range(max(1, round(self._interval / _LOOK))):
            if self._wake.wait(min(self._interval, _LOOK)):
                return
            if self._go_on:
                # What this read cannot have, the next report tells of.
                with suppress(Unavailable, NotFound):
                    self._go_on = self._store.state(*self._job[:2]) is State.RUNNING

    def _send(self) -> None:
        with self._lock:
            progress, self._progress = self._progress, None
            metrics, self._metrics = self._metrics, []
            events, self._events = self._events, []
            logs, self._logs = self._logs, []
        if self._stale:
            return
        try:
            state = self._store.report(*self._job, progress=progress, metrics=metrics, events=events, logs=logs)
            self._go_on = self._go_on and state is State.RUNNING
        except Unavailable as error:
            log.warning("the job store takes nothing now, what there is to tell is kept: %s", error)
            with self._lock:
                self._progress = self._progress or progress
                self._metrics = [*metrics, *self._metrics][-_KEPT_WHILE_AWAY:]
                self._events = [*events, *self._events][-_KEPT_WHILE_AWAY:]
                self._logs = [*logs, *self._logs][-_KEPT_WHILE_AWAY:]
        except (Conflict, NotFound) as error:
            log.warning("this attempt is over: %s", error)
            self._stale = True
            self._go_on = False
        except Exception:
            # A thread that died of it could tell nothing more, and the attempt would be ended as lost.
            log.exception("what there was to tell since the last report is lost")
