"""Run the parts of a stack: start them in order, restart those that crash, stop all of them at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Literal

from tlm_client.stack.folder import PartState, StackFolder, StackState
from tlm_client.stack.parts import Part
from tlm_client.stack.processes import FOLDER_MARK, PART_MARK, kill_processes, spawn
from tlm_core.artifacts import storage_errors
from tlm_core.errors import ClusterUnavailable, IndexUnavailable, StoreUnavailable, TLMError, Unavailable

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 15.0
_REPORT_SECONDS = 10.0
_MOST_CRASHES, _CRASH_WINDOW_SECONDS = 5, 300.0
# A part that was never up probably has a wrong configuration, so it gets only one more try.
_MOST_START_FAILURES = 2
_ROUND_SECONDS, _DRAIN_SECONDS = 0.1, 30.0
_ERRORS = {"redis": StoreUnavailable, "ray": ClusterUnavailable, "retriever": IndexUnavailable}

Notify = Callable[[str], None]


class StopFlag:
    """A flag that is set after a signal or the end of the parent process. tied_to: id of the parent process, or None.

    The flag has no lock. A signal handler would wait forever for a lock that the interrupted code holds.
    """

    def __init__(self, tied_to: int | None = None) -> None:
        self._signalled = False
        self._tied_to = tied_to

    @property
    def is_set(self) -> bool:
        return self._signalled or (self._tied_to is not None and os.getppid() != self._tied_to)

    def set(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        self._signalled = True

    @contextmanager
    def on_signals(self) -> Iterator[StopFlag]:
        """Let SIGINT, SIGTERM and SIGHUP only set this flag, so that they interrupt no operation of the stack."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = [signal.signal(number, self.set) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)


@dataclass
class _Run:
    """A part and its current process."""

    part: Part
    process: subprocess.Popen[bytes] | None = None
    up: bool = False
    ever_up: bool = False
    started_at: float = 0.0
    next_report: float = 0.0
    next_start: float = 0.0
    restarts: int = 0
    crashes: list[float] = field(default_factory=list)

    def state(self, log: Path) -> PartState:
        if self.process is None:
            return PartState(state="down" if self.restarts else "waiting", restarts=self.restarts, log=str(log))
        state: Literal["up", "starting"] = "up" if self.up else "starting"
        return PartState(state=state, pid=self.process.pid, restarts=self.restarts, log=str(log))

    def drain(self, cwd: Path) -> None:
        """Let the workers of the part write their checkpoints and end."""
        if self.part.drain and self.up:
            command, env = self.part.drain, dict(self.part.environment)
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(command, env=env, cwd=cwd, timeout=_DRAIN_SECONDS, capture_output=True, check=False)

    def terminate(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for the end of the process, and kill it after the part's stop_seconds."""
        if self.process is None:
            return
        try:
            self.process.wait(self.part.stop_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


class Supervisor:
    """Runs the parts until a flag is set. notify: receives each line for the user."""

    def __init__(self, folder: StackFolder, parts: Sequence[Part], url: str, *, notify: Notify) -> None:
        self._folder = folder
        self._runs = {part.name: _Run(part) for part in parts}
        self._notify = notify
        self._state = StackState(state="starting", pid=os.getpid(), url=url, started_at=datetime.now(UTC))

    def run(self, stop: StopFlag, on_ready: Callable[[], None]) -> bool:
        """Run all parts until `stop` is set, then stop them. Return whether all parts were up at the same time.

        on_ready: called once, when all parts are up. Raises Unavailable if a part does not start or crashes too often.
        """
        was_ready = False
        try:
            self._write_state()
            while not stop.is_set:
                changes = [self._step(run) for run in self._runs.values()]
                if any(changes):
                    self._write_state()
                if not was_ready and all(run.up for run in self._runs.values()):
                    was_ready = True
                    self._write_state("ready")
                    on_ready()
                time.sleep(_ROUND_SECONDS)
        finally:
            self._stop_all()
        return was_ready

    def _step(self, run: _Run) -> bool:
        """Start a part, check its health, or restart the part. Return whether its state changed."""
        part, now = run.part, time.monotonic()
        if run.process is None:
            if now < run.next_start or not all(self._runs[name].up for name in part.after):
                return False
            log = self._folder.log(part.name)
            with storage_errors(f"starting {part.name}"):
                run.process = spawn(part.command, part.environment, log, self._folder.root, part.death_signal)
            run.started_at = now
            return True
        code = run.process.poll()
        if code is not None:
            self._crashed(run, f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}")
            return True
        if run.up:
            if now >= run.next_report:
                run.next_report = now + _REPORT_SECONDS
                part.report()
            return False
        if part.healthy():
            run.up = run.ever_up = True
            self._notify(f"{part.name} is up ({now - run.started_at:.1f} s)")
            return True
        if now - run.started_at > part.start_seconds:
            self._crashed(run, f"did not answer within {part.start_seconds:.0f} s")
            return True
        return False

    def _crashed(self, run: _Run, reason: str) -> None:
        """Schedule a restart after an increasing delay. Raises Unavailable after too many crashes."""
        name, now = run.part.name, time.monotonic()
        run.terminate()
        run.wait()
        kill_processes({FOLDER_MARK: str(self._folder.root), PART_MARK: name})
        run.up = False
        run.restarts += 1
        run.crashes = [crash for crash in run.crashes if now - crash < _CRASH_WINDOW_SECONDS] + [now]
        count, log = len(run.crashes), self._folder.log(name)
        if count >= (_MOST_CRASHES if run.ever_up else _MOST_START_FAILURES):
            error = _ERRORS.get(name, Unavailable)
            raise error(f"{name} {reason}, {count} times. See {log}. Its last lines:\n{_tail(log)}", part=name)
        delay = min(_FIRST_DELAY * 2 ** (count - 1), _LONGEST_DELAY)
        run.next_start = now + delay
        self._notify(f"{name} {reason}. Restart in {delay:.1f} s (log: {log})")

    def _stop_all(self) -> None:
        """Stop all parts in their stop order, and kill the processes that remain."""
        running = [run for run in self._runs.values() if run.process is not None]
        if running:
            self._write_state("stopping")
            self._notify("stopping")
        for order in sorted({run.part.stop_order for run in running}):
            group = [run for run in running if run.part.stop_order == order]
            for run in group:
                run.drain(self._folder.root)
                run.terminate()
            for run in group:
                run.wait()
        kill_processes({FOLDER_MARK: str(self._folder.root)})
        self._folder.clear_state()

    def _write_state(self, state: Literal["starting", "ready", "stopping"] | None = None) -> None:
        parts = {name: run.state(self._folder.log(name)) for name, run in self._runs.items()}
        self._state = self._state.model_copy(update={"state": state or self._state.state, "parts": parts})
        try:
            self._folder.write_state(self._state)
        except TLMError as error:  # a full disk must not prevent the stack from running and stopping
            self._notify(f"{error.message} `tlm status` shows an older state.")


def _tail(log: Path) -> str:
    with open(log, "rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - 8192))
        return "\n".join(handle.read().decode("utf-8", "replace").splitlines()[-8:])
