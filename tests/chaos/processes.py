"""The processes under test: the real programs, with storage errors on demand and planted bugs."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from services.common.jobstore import JobStore
from services.trainer import compute
from services.trainer.program import _PR_SET_PDEATHSIG
from tlm_core.artifacts.manifest import MANIFEST
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import StorageFull, StorageUnavailable
from tlm_core.kinds import MODULES

MAIN = {"gateway": "services.api.__main__", "coordinator": "services.trainer.__main__"}
WORKER = "services.trainer.program"

# Bug → a script of the store, and the line that the bug removes from it.
SCRIPT_BUGS = {
    "no-fencing": ("report", "if attempt ~= ARGV[1] then return {'stale', attempt} end"),
    "no-idempotency": (
        "submit",
        "redis.call('SET', KEYS[3], cjson.encode({id = ARGV[1], digest = ARGV[5]}), 'EX', ARGV[6])",
    ),
    "lost-requeue": ("move", "redis.call('ZADD', queue, redis.call('HGET', KEYS[1], 'created_at') or stamp, ARGV[2])"),
}
# Bug → options of a run in which the bug has effects. expected: a kind of violation that the checker must report.
# `early-acknowledgment` is a Redis that answers before it writes to its disk.
BUGS: dict[str, dict[str, Any]] = {
    # Long steps: a lost worker continues after 1 to 8 s, and the next attempt must not have ended by then.
    "no-fencing": {
        "jobs": 16, "faults": 24, "wait": 1.5, "step_seconds": 1.0, "fault": ["lose worker"], "expected": "late write",
    },
    "no-idempotency": {
        "jobs": 24, "faults": 16, "wait": 1.5, "fault": ["cut network", "kill gateway"], "expected": "double job",
    },
    "early-acknowledgment": {"jobs": 24, "faults": 8, "wait": 2.0, "fault": ["kill redis"], "expected": "lost job"},
    "torn-manifest": {"jobs": 16, "faults": 8, "wait": 2.0, "expected": "torn artifact"},
    "lost-requeue": {
        "jobs": 16, "faults": 12, "wait": 1.5, "step_seconds": 0.5, "fault": ["kill worker", "lose worker"],
        "expected": "job without an end",
    },
}  # fmt: skip

_context = get_context("forkserver")
_PRELOADED = [*MAIN.values(), WORKER, __name__, "tests.chaos.kind"]
_context.set_forkserver_preload(_PRELOADED)


def preload(*modules: str) -> None:
    """Import more modules in the server that forks all processes. Call this before the first process."""
    _context.set_forkserver_preload([*_PRELOADED, *modules])


def start(role: str, environment: dict[str, str], folder: Path, bug: str, arguments: list[str]) -> BaseProcess:
    """Start a program in a new process group. role: `gateway`, `coordinator` or `worker`. folder: gets its log."""
    process = _context.Process(target=_run, args=(role, environment, folder, bug, arguments))
    process.start()
    return process


def _run(role: str, environment: dict[str, str], folder: Path, bug: str, arguments: list[str]) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # If the harness is killed, so is this process.
    log = os.open(folder / f"{role}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= environment
    _main(role, folder, bug, arguments)


def run_on_ray() -> None:
    """Run the program of a worker. Ray's command line is `python -m PROGRAM ARGUMENTS`."""
    _main("worker", Path(os.environ["CHAOS_FOLDER"]), "", sys.argv[3:])


def _main(role: str, folder: Path, bug: str, arguments: list[str]) -> None:
    MODULES["chaos"] = "tests.chaos.kind"
    _break_storage(folder / "storage-broken", folder / "storage-full")
    _plant(bug)
    if role not in MAIN:
        _record_writes(folder / "writes.jsonl")
        compute.measure_once = lambda *_: None  # Speed measurements would import torch.
    sys.argv = [role, *arguments]
    import_module(MAIN.get(role, WORKER)).main()


def _break_storage(broken: Path, full: Path) -> None:
    """Let each access to the storage fail while the file `broken` exists, and each write while `full` exists."""
    errors = ArtifactStore.errors

    def breaking(self: ArtifactStore, action: str, *, writes: bool = False) -> AbstractContextManager[None]:
        if broken.exists():
            raise StorageUnavailable(f"Failed {action}: planned fault.")
        if writes and full.exists():
            raise StorageFull(f"Failed {action}: planned fault.")
        return errors(self, action, writes=writes)

    ArtifactStore.errors = breaking  # type: ignore[method-assign, assignment]


def _record_writes(path: Path) -> None:
    """Record each report of a worker that the store accepted, with the current attempt before the call."""
    report: Callable[..., Any] = JobStore.report

    def recorded(self: JobStore, tenant: str, job: str, attempt: int, **values: Any) -> Any:
        current = self.get(tenant, job).attempt
        answer = report(self, tenant, job, attempt, **values)
        with path.open("a") as handle:
            handle.write(json.dumps({"job": job, "attempt": attempt, "current": current}) + "\n")
        return answer

    JobStore.report = recorded  # type: ignore[method-assign]


def _plant(bug: str) -> None:
    if bug in SCRIPT_BUGS:
        script, line = SCRIPT_BUGS[bug]
        begin = JobStore.__init__

        def without_line(self: JobStore, client: Any, *rest: Any) -> None:
            begin(self, client, *rest)
            text = self._script[script].script
            assert line in text, f"{script}.lua lacks the line that {bug} removes. Update SCRIPT_BUGS."
            self._script[script] = client.register_script(text.replace(line, ""))

        JobStore.__init__ = without_line  # type: ignore[method-assign]
    if bug == "torn-manifest":
        put, seed = ArtifactStore._put, os.environ["CHAOS_SEED"]

        def torn(self: ArtifactStore, source: Path, target: str) -> None:
            if target.endswith(MANIFEST) and _tears(seed, target.removeprefix(self.root)):
                source.write_bytes(source.read_bytes()[:40])
            put(self, source, target)

        ArtifactStore._put = torn  # type: ignore[method-assign]


def _tears(seed: str, path: str) -> bool:
    """Return whether the bug cuts this manifest: three of ten. Job ids do not count, because runs differ in them."""
    return random.Random(f"{seed}{re.sub('job_[^/-]+', '', path)}").random() < 0.3
