"""Reports of a worker to the job store. A thread sends them, so training never waits for Redis."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from services.common.jobstore import JobStore
from services.common.liveness import Liveness
from services.common.metrics import SPEED, STEP
from services.common.progress import progress_of
from services.common.situation import Situation
from tlm_core.errors import Conflict, NotFound, TLMError, Unavailable
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import Beat, Progress
from tlm_core.jobs.states import State
from tlm_core.pulse import PULSE

log = logging.getLogger(__name__)

_MAX_PENDING = 10_000  # entries of each kind that are buffered while Redis is unavailable
_LOGGED = ("mlm", "task", "validation_loss", "score")  # metrics in the log
Beats = Mapping[str, Beat]  # by group
_BEAT_SECONDS = 5.0  # most seconds between two heartbeats
_STATE_SECONDS = 0.1  # between two reads of the job's state, which are cheap; a report is a durable write


@dataclass
class _Report:
    """Entries to send. id: by this id, the store recognizes a repeated report.

    progress: function that computes the progress. Only `_send` calls it, because most reported steps are never sent.
    """

    progress: Callable[[Beats], Progress] | None = None
    metrics: list[Mapping[str, object]] = field(default_factory=list)
    events: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def __bool__(self) -> bool:
        return bool(self.metrics or self.events or self.logs or self.progress)


class JobReporter:
    """Implements `Reporter` (tlm_core.training.stage) with the job store.

    The reporter sends new progress, metrics, events and log lines every `interval` seconds, and a heartbeat at least
    every 5 s. A heartbeat contains the seconds without progress. If a stage reports no steps, the reporter estimates
    the progress of the stage. While Redis is unavailable or full, the reporter buffers its reports. Once the attempt
    has ended, `progress` returns False. draining: set when the attempt must stop at a checkpoint.
    """

    def __init__(
        self,
        store: JobStore,
        tenant: str,
        job_id: str,
        attempt: int,
        group: str,
        *,
        draining: threading.Event | None = None,
        interval: float = 0.5,
    ) -> None:
        self._store = store
        self._job = (tenant, job_id, attempt)
        self._group = group
        self._liveness = Liveness()
        self._interval = interval
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._continue = True
        self._draining = draining or threading.Event()
        self.drained_elsewhere = False  # whether another process of the attempt, not this one, has requested the stop
        self._stale = False
        self._node: tuple[Situation, Node] | None = None
        self._began = 0.0  # start of the current node, in seconds of the monotonic clock
        self._pending = _Report()
        self._unanswered: _Report | None = None  # the last report, if its answer was lost
        self._without_steps: Callable[[Beats], Progress] | None = None  # of a node that has reported no steps
        self._logged_tenth = 0  # of the current node
        self._latest: dict[str, float | int | str | None] = {}
        self._rate = 0.0  # tokens per second
        self._beat = self._measured()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    # --- for stages ---------------------------------------------------------------------------------------------

    def progress(self, *, step: int, total: int, rate: float | None, unit: str, eta_seconds: float | None) -> bool:
        """See `Reporter.progress`."""
        assert self._node is not None, "call start_node first"
        situation, node = self._node
        PULSE.advance()
        STEP.labels(self._job[1], node.name).set(step)
        if rate is not None:
            SPEED.labels(self._job[1], node.name, unit).set(rate)
        self._rate = rate or 0.0 if unit == "tokens" else 0.0
        began = self._began

        def current(beats: Beats) -> Progress:
            now = replace(situation, job=situation.job.model_copy(update={"beats": beats}))
            return progress_of(
                now, node, step=step, total=total, rate=rate, unit=unit, eta_seconds=eta_seconds,
                elapsed=time.monotonic() - began,
            )  # fmt: skip

        with self._lock:
            self._log_step(node, step, total, rate, unit)
            self._pending.progress, self._without_steps = current, None if total else current
            return self.should_continue

    def _log_step(self, node: Node, step: int, total: int, rate: float | None, unit: str) -> None:
        """Log the step after each tenth of the node's steps, with the metrics that are new since the last line."""
        tenth = 10 * step // total if total else 0
        if tenth <= self._logged_tenth:
            return
        self._logged_tenth = tenth
        latest = {name: self._latest.pop(name, None) for name in _LOGGED}
        shown = (f"{name} {value:.4g}" for name, value in latest.items() if isinstance(value, float | int))
        speed = [f"{rate:,.0f} {unit}/s"] if rate is not None else []
        self._pending.logs.append(", ".join([f"{node.name}: step {step:,} of {total:,}", *shown, *speed]))

    def metrics(self, **values: float | int | str | None) -> None:
        """See `Reporter.metrics`."""
        assert self._node is not None, "call start_node first"
        with self._lock:
            node = self._node[1]
            self._latest |= values
            self._pending.metrics.append({"node": node.name, "stage": node.stage.name, **values})

    def event(self, type: str, **data: object) -> None:
        """See `Reporter.event`."""
        with self._lock:
            self._pending.events.append((type, data))

    # --- for the runner -----------------------------------------------------------------------------------------

    def log_line(self, text: str) -> None:
        """Append one line to the job's log."""
        with self._lock:
            self._pending.logs.append(text)

    def start_node(self, situation: Situation, node: Node) -> None:
        """Set the current node, to which later progress, metrics and log lines belong."""
        self._node, self._began = (situation, node), time.monotonic()
        self._logged_tenth, self._latest = 0, {}
        STEP.clear()
        SPEED.clear()
        self._liveness.restart()
        self.progress(step=0, total=0, rate=None, unit="steps", eta_seconds=None)

    @property
    def should_continue(self) -> bool:
        """Whether the stage may continue: False once the job must stop or the attempt has ended."""
        return self._continue and not self.draining

    @property
    def draining(self) -> bool:
        """Whether the attempt must stop at a checkpoint: a machine stops, or more workers have room."""
        return self._draining.is_set()

    def flush(self) -> None:
        """Send the pending report with a heartbeat. After the end of the job, the store rejects reports.

        If the answer to the last report was lost, first send that report again. Its id is the same, so the store does
        not apply it twice.
        """
        with self._sending:  # Reports stay in order.
            if self._unanswered is None or self._send(self._unanswered):
                with self._lock:
                    report, self._pending = self._pending, _Report()
                self._send(report)
            with self._lock:
                for entries in (self._pending.metrics, self._pending.events, self._pending.logs):
                    del entries[:-_MAX_PENDING]

    def close(self) -> None:
        """Send the pending report and end the thread."""
        self._closing.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        waited = _BEAT_SECONDS
        while True:
            closing = self._closing.is_set()
            self._beat = self._measured()
            with self._lock:
                if waited >= _BEAT_SECONDS:
                    self._pending.progress = self._pending.progress or self._without_steps
                pending = bool(self._pending) or bool(self._unanswered)
            if pending or waited >= _BEAT_SECONDS:
                self.flush()
                waited = 0.0
            if closing:
                return
            self._wait()
            waited += self._interval

    def _wait(self) -> None:
        """Wait until the next report is due. Read the job's state more often, so that jobs stop within a few steps."""
        for _ in range(max(1, round(self._interval / _STATE_SECONDS))):
            if self._closing.wait(min(self._interval, _STATE_SECONDS)):
                return
            if self._continue:
                # The next report raises the same error, and logs it.
                with suppress(TLMError):
                    ended, draining = self._store.must_stop(*self._job[:2])
                    self._continue = not ended
                    if draining and not self._draining.is_set():
                        self.drained_elsewhere = True
                        self._draining.set()

    def _measured(self) -> Beat:
        idle, limit = self._liveness.sample()
        return Beat(idle=idle, limit=limit, rate=self._rate)

    def _send(self, report: _Report) -> bool:
        """Send a report with the last heartbeat. Return whether the next report may be sent."""
        if self._stale:
            return False
        self._unanswered = None
        try:
            state = self._store.report(
                *self._job,
                progress=report.progress(self._store.beats(*self._job[:2])) if report.progress else None,
                metrics=report.metrics,
                events=report.events,
                logs=report.logs,
                beat=(self._group, self._beat.model_copy(update={"report": report.id})),
            )
            self._continue = self._continue and state is State.RUNNING
        except Unavailable as error:
            log.warning("Cannot report to the job store now; the report is buffered: %s", error)
            self._unanswered = report
        except (Conflict, NotFound) as error:
            log.warning("This attempt has ended: %s", error)
            self._stale = True
            self._continue = False
        except Exception:
            # Without this thread, the worker would be silent, and the coordinator would stop the worker.
            log.exception("A report was lost")
        return self._unanswered is None
