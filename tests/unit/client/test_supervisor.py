"""The supervisor with small real processes: start order, restarts, failures and cleanup."""

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
from tlm_client.stack.processes import FOLDER_MARK, PART_MARK, RUN_MARK, Marks, kill_processes, list_processes
from tlm_client.stack.supervisor import StopFlag, Supervisor
from tlm_core.errors import Unavailable

SERVE = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"


class Stack:
    """Parts that write a file when they are up, and the lines of the supervisor."""

    def __init__(self, root: Path) -> None:
        self.folder = StackFolder(root)
        self.folder.create()
        self.lines: list[str] = []
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
        supervisor = Supervisor(self.folder, parts, "http://127.0.0.1:1", notify=self.lines.append)
        supervisor.run(self.stop, when_ready or self.stop.set)

    def pid(self, name: str) -> int:
        state = self.folder.state()
        assert state is not None
        pid = state.parts[name].pid
        assert pid is not None
        return pid


def wait_for(marks: Marks, count: int, seconds: float = 5.0) -> list[int]:
    """Return the marked processes when there are `count`; a process has no environment until exec."""
    deadline = time.monotonic() + seconds
    while len(pids := list_processes(marks)) != count and time.monotonic() < deadline:
        time.sleep(0.05)
    return pids


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path / "stack")


def test_part_is_drained_before_it_stops(stack: Stack) -> None:
    code = """
        import pathlib, signal, sys, time
        up = pathlib.Path(sys.argv[1])
        def stop(*_):
            (up.parent / "stopped").write_text(str((up.parent / "drained").exists()))
            sys.exit()
        signal.signal(signal.SIGTERM, stop)
        up.touch()
        time.sleep(60)
    """
    drain = (sys.executable, "-c", "import pathlib; pathlib.Path('drained').touch()")
    stack.run(stack.part("ray", code, drain=drain))
    assert (stack.folder.root / "stopped").read_text() == "True"


def test_parts_start_after_dependencies_and_stop_in_order(stack: Stack) -> None:
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
        stack.part("redis", code, stop_order=2),
        stack.part("ray", code, stop_order=1),
        stack.part("api", code, after=("redis",)),
    )

    def ready() -> None:
        states.append(stack.folder.state())
        stack.stop.set()

    stack.run(*parts, when_ready=ready)
    up = [line.split()[0] for line in stack.lines if "is up" in line]
    assert up.index("redis") < up.index("api")
    assert states[0] is not None and states[0].state == "ready"
    assert (stack.folder.root / "order").read_text(encoding="utf-8").split() == ["api", "ray", "redis"]
    assert stack.folder.state() is None
    assert list_processes(stack.marks) == []


def test_killed_part_is_restarted(stack: Stack) -> None:
    pids: list[int] = []

    def healthy() -> bool:
        if pids and stack.pid("api") != pids[0]:
            stack.stop.set()
        return (stack.folder.root / "api.up").exists()

    def kill() -> None:
        pids.append(stack.pid("api"))
        os.kill(pids[0], signal.SIGKILL)

    stack.run(stack.part("api", healthy=healthy), when_ready=kill)
    assert any("api was killed by signal 9. Restart in 0.5 s" in line for line in stack.lines)


def test_part_that_is_up_reports(stack: Stack) -> None:
    stack.run(stack.part("redis", report=stack.stop.set), when_ready=lambda: None)
    assert stack.stop.is_set


def test_failing_part_stops_the_stack_and_shows_its_log(stack: Stack) -> None:
    broken = stack.part("api", "print('TLM_API_STORAGE is missing', flush=True); raise SystemExit(3)")
    with pytest.raises(Unavailable, match=r"api ended with exit code 3, 2 times") as caught:
        stack.run(stack.part("redis"), broken)
    assert "TLM_API_STORAGE is missing" in str(caught.value)
    assert list_processes(stack.marks) == []
    assert stack.folder.state() is None


def test_part_that_does_not_answer_in_time_fails(stack: Stack) -> None:
    silent = stack.part("api", healthy=lambda: False, start_seconds=0.3)
    with pytest.raises(Unavailable, match="did not answer within"):
        stack.run(silent)
    assert list_processes(stack.marks) == []


def test_part_that_ignores_sigterm_is_killed(stack: Stack) -> None:
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SERVE}"
    start = time.monotonic()
    stack.run(stack.part("api", code, stop_seconds=0.5))
    assert time.monotonic() - start < 10
    assert list_processes(stack.marks) == []


def test_grandchildren_in_other_sessions_are_killed(stack: Stack) -> None:
    code = """
        import pathlib, subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(60)
    """
    running: list[int] = []

    def ready() -> None:
        running.extend(wait_for(stack.marks, 2))
        stack.stop.set()

    stack.run(stack.part("ray", code), when_ready=ready)
    assert len(running) == 2
    assert wait_for(stack.marks, 0) == [], "a killed process may take a moment to end"


def test_killing_one_part_leaves_the_others(stack: Stack) -> None:
    def start(part: str) -> subprocess.Popen[bytes]:
        environment = {**stack.marks, PART_MARK: part}
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)

    ray, api = start("ray"), start("api")
    try:
        wait_for(stack.marks, 2)
        assert kill_processes({**stack.marks, PART_MARK: "ray"}) == [ray.pid]
        assert ray.wait(5) == -signal.SIGKILL
        assert api.poll() is None
    finally:
        for process in (ray, api):
            process.kill()
            process.wait()


def test_cleaner_kills_the_processes_of_a_killed_supervisor(tmp_path: Path) -> None:
    code = """
        import os, subprocess, sys, time
        from tlm_client.stack.processes import RUN_MARK, cleaner
        with cleaner("run-1", grace_seconds=0.5):
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


def test_signal_sets_the_flag_and_handlers_are_restored() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    flag = StopFlag()
    with flag.on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert flag.is_set
    assert signal.getsignal(signal.SIGTERM) == handler


def test_tied_stack_stops_with_its_parent() -> None:
    assert not StopFlag(tied_to=os.getppid()).is_set
    assert StopFlag(tied_to=os.getpid()).is_set
