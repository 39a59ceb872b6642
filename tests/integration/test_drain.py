"""A worker's machine stops: the worker writes a checkpoint, and the next attempt resumes at the same step."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from services.trainer.cluster import Status
from services.trainer.settings import TrainerSettings
from tests.contract.coordinator_harness import coordinator_of
from tests.contract.gateway import TRAIN, T, add_dataset, make_gateway
from tests.e2e.stack import OVERRIDES
from tests.integration.worker_processes import Programs
from tests.redis_server import RedisServer
from tests.support import ROOT, wait_for
from tlm_core.jobs.spec import JobRecord

_SHORT = {name: value for name, value in OVERRIDES.items() if not name.startswith("selection.")} | {
    "selection.selector": "none", "joint.budget.steps": 3000, "checkpoint_steps": 3000,
}  # fmt: skip


class _LikeRay(Programs):
    """Runs each program in a shell, as Ray does, and kills the program when its shell has ended."""

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["/bin/sh", "-c", f"{shlex.join(command)}; exit"], start_new_session=True)

    def status(self, submission: str) -> Status:
        if submission in self.processes and self.processes[submission].poll() is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.processes[submission].pid, signal.SIGKILL)
        return super().status(submission)

    def close(self) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        super().close()


def test_drained_worker_loses_no_step(
    redis_client: redis.Redis,
    redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    gateway = make_gateway(redis_client, tmp_path)
    own = {
        "STORAGE": str(gateway.root / "storage"), "SCRATCH": str(gateway.root / "workers"),
        "REDIS_URL": redis_server.url, "REDIS_PASSWORD": redis_server.password,
    }  # fmt: skip
    for name, value in own.items():
        monkeypatch.setenv(f"TLM_TRAINER_{name}", value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    jobs, settings, programs = gateway.parts.jobs, TrainerSettings(), _LikeRay()
    request.addfinalizer(programs.close)
    coordinator = coordinator_of(gateway, programs, settings)
    add_dataset(gateway, "toy", {"train": TRAIN})
    with gateway.test_client() as api:
        job_id = api.post("/v1/jobs", json={"dataset": "toy", "overrides": _SHORT}).json()["id"]

    def record_once(condition: Callable[[JobRecord], object]) -> JobRecord:
        return wait_for(lambda: coordinator.round() or (condition(job := jobs.get(T, job_id)) and job), 120)

    def steps(kind: str) -> list[int]:
        return [int(str(event.data["step"])) for event in jobs.events(T, job_id) if event.type == kind]

    def trains(job: JobRecord) -> bool:
        return job.progress is not None and job.progress.node == "joint.s0" and job.progress.step > 10

    record_once(trains)
    subprocess.run([sys.executable, "-m", "services.trainer.drain"], check=True, timeout=120)
    stopped = record_once(lambda job: job.state == "queued")
    assert stopped.progress is not None and stopped.progress.step < 3000
    record_once(lambda _: steps("stage.resumed"))
    (resumed,) = steps("stage.resumed")
    assert steps("checkpoint.published") == [resumed] and resumed >= stopped.progress.step
    assert stopped.failures == 0
