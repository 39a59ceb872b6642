"""The supervisor over small real processes: order, restarts, giving up, and nothing left at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tlm_client.stack.folder import StackFolder
from tlm_client.stack.parts import Part
from tlm_client.stack.processes import FOLDER_MARK, PART_MARK, RUN_MARK, Marks, marked, sweep
from tlm_client.stack.supervisor import StopFlag, Supervisor
from tlm_core.errors import Unavailable

SERVE = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"


class Stack:
    """Parts that write a file when they are up, and what the supervisor said of them."""

    def __init__(self, root: Path) -> None:
        self.folder = StackFolder(root)
        self.folder.create()
        self.said: list[str] = []
        self.stop = StopFlag()
        self.marks = {FOLDER_MARK: str(self.folder.root)}

    def part(self, name: str, code: str = SERVE, **over: object) -> Part:
        up = self.folder.root / f"{name}.up"
        values: dict[str, object] = {
            "name": name,
            "command": (sys.executable, "-c", textwrap.dedent(code), str(up)),
            "environment": {**self.marks, PART_MARK: name},
            "healthy": up.exists,
            "stop_seconds": 5.0,
        }
        return Part(**{**values, **over})  # type: ignore[arg-type]

    def run(self, *parts: Part, when_ready: Callable[[], None] | None = None) -> None:
        supervisor = Supervisor(
            self.folder, parts, "http://127.0.0.1:1", say=self.said.append, pid=os.getpid(), started_at=0.0
        )
        supervisor.run(self.stop, when_ready or self.stop.set)

    def pid(self, name: str) -> int:
        state = self.folder.state()
        assert state is not None
        pid = state.parts[name].pid
        assert pid is not None
        return pid


def wait_for(marks: Marks, count: int, seconds: float = 5.0) -> list[int]:
    """The marked processes, as soon as there are so many: what is just being executed has no environment yet."""
    deadline = time.monotonic() + seconds
    while len(found := marked(marks)) != count and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path / "stack")


def test_parts_start_after_those_they_need_and_stop_in_order(stack: Stack) -> None:
    code = """
        import pathlib, signal, sys, time
        def end(*_):
            with open("order", "a") as log: log.write(pathlib.Path(sys.argv[1]).stem + " ")
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        time.sleep(0.2)
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(60)
    """
    states = []
    parts = (
        stack.part("redis", code, order=2),
        stack.part("ray", code, order=1),
        stack.part("api", code, after=("redis",)),
    )

    def ready() -> None:
        states.append(stack.folder.state())
        stack.stop.set()

    stack.run(*parts, when_ready=ready)
    up = [line.split()[0] for line in stack.said if "is up" in line]
    assert up.index("redis") < up.index("api")
    assert states[0] is not None and states[0].state == "ready"
    assert (stack.folder.root / "order").read_text(encoding="utf-8").split() == ["api", "ray", "redis"]
    assert stack.folder.state() is None
    assert marked(stack.marks) == []


def test_a_part_that_is_killed_is_started_again(stack: Stack) -> None:
    pids: list[int] = []

    def healthy() -> bool:
        if pids and stack.pid("api") != pids[0]:
            stack.stop.set()
        return (stack.folder.root / "api.up").exists()

    def kill() -> None:
        pids.append(stack.pid("api"))
        os.kill(pids[0], signal.SIGKILL)

    stack.run(stack.part("api", healthy=healthy), when_ready=kill)
    assert any("api was killed by signal 9; starting it again in 0.5 s" in line for line in stack.said)


def test_a_part_that_never_comes_up_stops_the_stack_and_shows_its_last_words(stack: Stack) -> None:
    broken = stack.part("api", "print('TLM_API_STORAGE is missing', flush=True); raise SystemExit(3)")
    with pytest.raises(Unavailable, match=r"api ended with exit code 3, 2 times") as caught:
        stack.run(stack.part("redis"), broken)
    assert "TLM_API_STORAGE is missing" in str(caught.value)
    assert marked(stack.marks) == []
    assert stack.folder.state() is None


def test_a_part_that_does_not_answer_in_time_is_given_up(stack: Stack) -> None:
    mute = stack.part("api", healthy=lambda: False, patience=0.3)
    with pytest.raises(Unavailable, match="did not answer within"):
        stack.run(mute)
    assert marked(stack.marks) == []


def test_a_part_that_ignores_sigterm_is_killed(stack: Stack) -> None:
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SERVE}"
    begun = time.monotonic()
    stack.run(stack.part("api", code, stop_seconds=0.5))
    assert time.monotonic() - begun < 10
    assert marked(stack.marks) == []


def test_grandchildren_in_sessions_of_their_own_are_swept_too(stack: Stack) -> None:
    code = """
        import pathlib, subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(60)
    """
    seen: list[int] = []

    def ready() -> None:
        seen.extend(marked(stack.marks))
        stack.stop.set()

    stack.run(stack.part("ray", code), when_ready=ready)
    assert len(seen) == 2
    assert marked(stack.marks) == []


def test_a_sweep_of_one_part_leaves_the_others(stack: Stack) -> None:
    def start(part: str) -> subprocess.Popen[bytes]:
        environment = {**stack.marks, PART_MARK: part}
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)

    ray, api = start("ray"), start("api")
    try:
        wait_for(stack.marks, 2)
        assert sweep({**stack.marks, PART_MARK: "ray"}) == [ray.pid]
        assert ray.wait(5) == -signal.SIGKILL
        assert api.poll() is None
    finally:
        for process in (ray, api):
            process.kill()
            process.wait()


def test_the_janitor_clears_away_what_a_killed_supervisor_leaves(tmp_path: Path) -> None:
    """Not even a process in a session of its own, that knows nothing of the supervisor, is left."""
    code = """
        import os, subprocess, sys, time
        from tlm_client.stack.processes import RUN_MARK, janitor
        with janitor("run-1", patience=0.5):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True,
                             env={RUN_MARK: "run-1", "TLM_TEST": sys.argv[1]})
            print("started", flush=True)
            time.sleep(60)
    """
    marks = {RUN_MARK: "run-1", "TLM_TEST": str(tmp_path)}
    supervisor = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE, env=dict(os.environ)
    )
    with supervisor:
        assert supervisor.stdout is not None and supervisor.stdout.readline() == b"started\n"
        running = wait_for(marks, 1)
        supervisor.kill()
    assert len(running) == 1
    assert wait_for(marks, 0, seconds=15) == []


def test_a_signal_sets_the_flag_and_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    flag = StopFlag()
    with flag.on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert flag.is_set
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stack_that_is_tied_stops_with_its_parent() -> None:
    assert not StopFlag(tied_to=os.getppid()).is_set
    assert StopFlag(tied_to=os.getpid()).is_set
