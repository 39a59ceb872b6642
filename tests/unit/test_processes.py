"""Functions in other processes: their results, their errors, their progress, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import wait_for
from tlm_core.errors import WorkerLost
from tlm_core.processes import processes
from tlm_core.pulse import PULSE

KILLED = """
import os, time
from tlm_core.processes import processes
if __name__ == "__main__":
    with processes(1) as started:
        print(started.call(os.getpid), flush=True)
        started.call(time.sleep, 600)
"""


def compute(seconds: float) -> None:
    began = time.process_time()
    while time.process_time() < began + seconds:
        pass


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error: Exception) -> None:
    raise error


def test_call_returns_the_result_and_counts_cpu_time_as_progress() -> None:
    with processes(1) as started:
        assert started.call(os.getpid) not in (os.getpid(), None)
        before = PULSE.count
        started.call(compute, 3.0)
    assert PULSE.count > before


@pytest.mark.parametrize("error", [ValueError("wrong"), TimeoutError("slow")])
def test_call_raises_the_error_of_the_function(error: Exception) -> None:
    with processes(1) as started, pytest.raises(type(error), match=str(error)):
        started.call(fail, error)


def test_call_names_a_killed_process() -> None:
    with processes(1) as started, pytest.raises(WorkerLost, match="was killed"):
        started.call(kill)


def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    with subprocess.Popen([sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{child}").exists())
