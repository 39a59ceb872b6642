"""The program of an attempt: a child computes, and its parent reports what the child cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.trainer.oom import oom_kills

RUN = """
import os, sys
from services.trainer import program
from services.trainer.assignment import Assignment
program.Assignment = type("Fixed", (), {"read": lambda: Assignment("t", "job_1", 1, "main", WORKERS, 1.0, 0.0)})
kills = iter([1, KILLS])
program.oom_kills = lambda: next(kills)
program._report_memory = lambda assignment: print("out of memory", flush=True)
def end(assignment):
    print("computed", flush=True)
    END
program._run = end
program.main()
"""


@pytest.mark.parametrize(
    ("end", "workers", "kills", "code", "output"),
    [
        ("pass", 1, 2, 0, "computed"),
        ("sys.exit(3)", 1, 2, 3, "computed"),
        ("os.kill(os.getpid(), 9)", 1, 1, 137, "computed"),
        ("os.kill(os.getpid(), 9)", 1, 2, 137, "computed out of memory"),
        ("sys.exit(1)", 2, 2, 1, "computed out of memory"),
    ],
)
def test_worker_that_the_kernel_killed_for_its_memory_is_reported(
    end: str, workers: int, kills: int, code: int, output: str
) -> None:
    script = RUN.replace("WORKERS", str(workers)).replace("KILLS", str(kills)).replace("END", end)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (code, output.split()), done.stderr


@pytest.mark.parametrize(
    ("name", "text", "kills"),
    [
        ("memory.events", "low 0\noom 3\noom_kill 2\n", 2),
        ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n", 4),
        ("other", "", 0),
    ],
)
def test_oom_kills_are_read_from_either_version_of_cgroups(tmp_path: Path, name: str, text: str, kills: int) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert oom_kills(tmp_path) == kills
