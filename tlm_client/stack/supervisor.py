"""Keeps the parts of a stack running: starts them in order, restarts what crashes, stops all of them at the end.

Level-triggered: each round looks at every part and takes its next step, whether the stack is starting or has long
been up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from tlm_client.stack.folder import PartState, StackFolder, StackState
from tlm_client.stack.parts import Part
from tlm_client.stack.processes import FOLDER_MARK, PART_MARK, spawn, sweep
from tlm_core.artifacts import storage_errors
from tlm_core.errors import ClusterUnavailable, IndexUnavailable, StoreUnavailable, TLMError, Unavailable

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 15.0
_CRASHES, _WINDOW_SECONDS = 5, 300.0
_ROUND_SECONDS = 0.1
_ERRORS = {"redis": StoreUnavailable, "ray": ClusterUnavailable, "retriever": IndexUnavailable}

Say = Callable[[str], None]


class StopFlag:
    """Set by SIGINT, SIGTERM or SIGHUP, or by the end of the parent process `tied_to`.

    A plain attribute: a lock might be held by the very code that a signal interrupts.
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
        """Within it the signals set the flag and nothing else, so that no line of the stack is cut in two."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [signal.signal(number, self.set) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


@dataclass
class _Watched:
    part: Part
    process: subprocess.Popen[bytes] | None = None
    up: bool = False
    ever_up: bool = False
    started_at: float = 0.0
    next_start: float = 0.0
    restarts: int = 0
    crashes: list[float] = field(default_factory=list)


class Supervisor:
    """Runs the parts until told to stop. `say` gets a line for each thing a person wants to know."""

    def __init__(
        self, folder: StackFolder, parts: Sequence[Part], url: str, *, say: Say, pid: int, started_at: float
    ) -> None:
        self._folder = folder
        self._watched = {part.name: _Watched(part) for part in parts}
        self._say = say
        self._state = StackState(state="starting", pid=pid, url=url, started_at=started_at)

    def run(self, stop: StopFlag, ready: Callable[[], None]) -> bool:
        """Start everything, call `ready` once it is up, watch until `stop` is set; then nothing is left running.

        Return whether it was ready.

        Raises Unavailable when a part does not come up or crashes too often.
        """
        try:
            self._write()
            told = False
            while not stop.is_set:
                changed = [self._step(watched) for watched in self._watched.values()]
                if any(changed):
                    self._write()
                if not told and all(watched.up for watched in self._watched.values()):
                    told = True
                    self._write("ready")
                    ready()
                time.sleep(_ROUND_SECONDS)
            return told
        finally:
            self._stop_all()

    def _step(self, watched: _Watched) -> bool:
        """Take the next step of one part; whether anything changed."""
        part, now = watched.part, time.monotonic()
        if watched.process is None:
            if now < watched.next_start or not all(self._watched[name].up for name in part.after):
                return False
            with storage_errors(f"starting {part.name}"):
                watched.process = spawn(
                    part.command, part.environment, self._folder.log(part.name), self._folder.root, part.orphaned
                )
            watched.started_at = now
            return True
        code = watched.process.poll()
        if code is not None:
            self._crashed(watched, f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}")
            return True
        if watched.up:
            return False
        if part.healthy():
            watched.up = watched.ever_up = True
            self._say(f"{part.name} is up ({now - watched.started_at:.1f} s)")
            return True
        if now - watched.started_at > part.patience:
            self._crashed(watched, f"did not answer within {part.patience:.0f} s")
            return True
        return False

    def _crashed(self, watched: _Watched, how: str) -> None:
        """Plan the part's next start, after a growing delay. Raises Unavailable if it has crashed too often."""
        part, now = watched.part, time.monotonic()
        _terminate(watched)
        _wait(watched)
        sweep({FOLDER_MARK: str(self._folder.root), PART_MARK: part.name})
        watched.up = False
        watched.restarts += 1
        watched.crashes = [at for at in watched.crashes if now - at < _WINDOW_SECONDS] + [now]
        # What has never been up is more likely set up wrongly than unlucky: one more try will do.
        limit = _CRASHES if watched.ever_up else 2
        log = self._folder.log(part.name)
        if len(watched.crashes) >= limit:
            cause = _ERRORS.get(part.name, Unavailable)
            raise cause(
                f"{part.name} {how}, {len(watched.crashes)} times; see {log}. Its last lines:\n{_tail(log)}",
                part=part.name,
            )
        delay = min(_FIRST_DELAY * 2 ** (len(watched.crashes) - 1), _LONGEST_DELAY)
        watched.next_start = now + delay
        self._say(f"{part.name} {how}; starting it again in {delay:.1f} s (log: {log})")

    def _stop_all(self) -> None:
        """Stop in order (services, Ray, Redis last, so that its file is whole) and leave no process behind."""
        if any(watched.process for watched in self._watched.values()):
            self._write("stopping")
            self._say("stopping")
        for order in sorted({watched.part.order for watched in self._watched.values()}):
            group = [w for w in self._watched.values() if w.part.order == order and w.process is not None]
            for watched in group:
                _terminate(watched)
            for watched in group:
                _wait(watched)
        sweep({FOLDER_MARK: str(self._folder.root)})
        self._folder.clear_state()

    def _write(self, state: Literal["starting", "ready", "stopping"] | None = None) -> None:
        parts = {name: self._part_state(watched) for name, watched in self._watched.items()}
        self._state = self._state.model_copy(update={"state": state or self._state.state, "parts": parts})
        try:
            self._folder.write_state(self._state)
        except TLMError as error:  # what runs goes on, and above all stopping it does
            self._say(f"{error.message}; `tlm status` will not know the newest state")

    def _part_state(self, watched: _Watched) -> PartState:
        log = str(self._folder.log(watched.part.name))
        if watched.process is None:
            return PartState(state="down" if watched.restarts else "waiting", restarts=watched.restarts, log=log)
        state: Literal["up", "starting"] = "up" if watched.up else "starting"
        return PartState(state=state, pid=watched.process.pid, restarts=watched.restarts, log=log)


def _terminate(watched: _Watched) -> None:
    if watched.process is not None:
        watched.process.send_signal(signal.SIGTERM)


def _wait(watched: _Watched) -> None:
    """Wait for the process to end, and make it end when its time is over."""
    if watched.process is None:
        return
    try:
        watched.process.wait(watched.part.stop_seconds)
    except subprocess.TimeoutExpired:
        watched.process.kill()
        watched.process.wait()
    watched.process = None


def _tail(log: Path, lines: int = 8) -> str:
    with open(log, "rb") as handle:
        handle.seek(0, 2)
        handle.seek(max(0, handle.tell() - 8192))
        return "\n".join(handle.read().decode("utf-8", "replace").splitlines()[-lines:])
