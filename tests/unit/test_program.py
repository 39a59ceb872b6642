"""The program of an attempt: a child computes, and its parent reports what the child cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.trainer import compute
from services.trainer.assignment import Assignment
from services.trainer.drain import drain_nodes, ray_nodes, worker_processes
from services.trainer.oom import oom_kills
from services.trainer.settings import TrainerSettings
from tlm_core.errors import StoreUnavailable

RUN = """
import os, sys
from services.trainer import program
from services.trainer.assignment import Assignment
assignment = Assignment("t", "job_1", 1, "main", WORKERS, WORKERS, 1.0, 0.0)
program.Assignment = type("Fixed", (), {"read": lambda: assignment})
kills = iter([1, KILLS])
program.oom_kills = lambda: next(kills)
program.report_oom = lambda assignment: print("out of memory", flush=True)
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
        ("sys.exit(3)", 1, 1, 3, "computed"),
        ("sys.exit(3)", 1, 2, 3, "computed out of memory"),
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


DRAIN = """
import os, signal, sys, time
from services.trainer import compute, program
from services.trainer.assignment import Assignment
program.Assignment = type("Fixed", (), {"read": lambda: Assignment("t", "job_1", 1, "main", 1, 1, 1.0, 0.0)})
def run(assignment):
    draining = compute.drain_on_sigterm(assignment)
    print("ready", flush=True)
    while not draining.is_set() or HANGS:
        time.sleep(0.01)
    print("checkpoint", flush=True)
program._run = run
program.main()
"""


@pytest.mark.parametrize(("hangs", "output", "code"), [(False, "checkpoint", 0), (True, "", 143)])
def test_program_stops_its_stage_on_sigterm_within_the_grace_period(hangs: bool, output: str, code: int) -> None:
    script = DRAIN.replace("HANGS", str(hangs))
    settings = {"STORAGE": "s", "SCRATCH": "s", "DRAIN_SECONDS": "0.1" if hangs else "60"}
    environment = os.environ | {f"TLM_TRAINER_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        process.terminate()
        assert (process.communicate(timeout=30)[0].strip(), process.returncode) == (output, code)


def test_rank_passes_sigterm_on_once_redis_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, Callable[[], None]] = {}
    monkeypatch.setattr(compute.signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(compute.signal, "setitimer", lambda *_: None)
    for name in ("STORAGE", "SCRATCH"):
        monkeypatch.setenv(f"TLM_TRAINER_{name}", "/unused")
    errors, passed_on = [StoreUnavailable("away")], threading.Event()

    def report(*_: object, draining: bool) -> None:
        if errors:
            raise errors.pop()
        assert draining
        passed_on.set()

    monkeypatch.setattr(TrainerSettings, "job_store", lambda _: SimpleNamespace(report=report))
    compute.drain_on_sigterm.__wrapped__(Assignment("t", "job_1", 1, "main", 2, 2, 1.0, 0.0))
    handlers[signal.SIGTERM]()
    assert passed_on.wait(10)


def test_training_processes_of_a_stack_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLM_TRAINER_SCRATCH", "/scratch")
    own, program = b"HOME=/\0TLM_TRAINER_SCRATCH=/scratch", b"python\0-m\0services.trainer.program"
    processes = {
        "1": (b"ray\0start", own),
        "2": (program, own),
        "3": (b"ray::RayTrainWorker.run", own),
        "4": (program, own + b"-of-another-stack"),
        "5": (b"/bin/sh\0-c\0python -m services.trainer.program --job 1", own),
        "self": (b"", own),
    }
    for name, (command, environment) in processes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cmdline").write_bytes(command)
        (tmp_path / name / "environ").write_bytes(environment)
    assert sorted(worker_processes(tmp_path)) == [2, 3]


def test_drain_lets_ray_place_no_more_workers_on_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processes = {
        "1": b"/ray/raylet\0--gcs-address=head:6379\0--node_id=abc",
        "2": b"python\0--node_id=def",
        "self": b"",
    }
    for name, command in processes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cmdline").write_bytes(command)
    nodes, calls, ray = ray_nodes(tmp_path), tmp_path / "calls", tmp_path / "ray"
    assert nodes == [("head:6379", "abc")]
    ray.write_text(
        f'#!/bin/sh\necho "$1 $3 $5 $7" >> {calls}\n[ -z "$REFUSED" ] || {{ echo "$REFUSED" >&2; exit 1; }}\n'
    )
    ray.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    drain_nodes(nodes)
    assert not caplog.messages
    monkeypatch.setenv("REFUSED", "the head is away")
    drain_nodes(nodes)
    assert caplog.messages == ["Ray may still place workers here: the head is away"]
    ray.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    drain_nodes(nodes)
    assert "'ray'" in caplog.messages[1]
    assert calls.read_text().splitlines() == ["drain-node head:6379 abc DRAIN_NODE_REASON_PREEMPTION"] * 2
