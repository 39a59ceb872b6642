"""A worker process that hangs or is stopped, next to a coordinator that watches it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from services.common.liveness import FIRST_SECONDS
from tests.contract.coordinator_harness import CoordinatorHarness
from tests.redis_server import RedisServer
from tests.support import ROOT, wait_for
from tlm_core.jobs.states import State

# Trains until the file HANG exists, then hangs. LEAST is the limit of seconds without progress.
_TRAIN = """
import os, sys, time
from services.common import liveness
from services.trainer import program, reporter
from tlm_core.pulse import PULSE
from tlm_core.stages import Stage

liveness.LEAST_SECONDS = float(os.environ["LEAST"])
reporter.JobReporter.__init__.__kwdefaults__.update(heartbeat=0.1, interval=0.1)

def train(context):
    with PULSE.pace(steady=True):
        while not os.path.exists(os.environ["HANG"]):
            PULSE.advance()
            PULSE.warm_up()
            time.sleep(0.02)
        while True:
            pass

Stage.load = lambda stage: train
program.main()
"""


@pytest.mark.parametrize("hangs", [True, False])
def test_stuck_worker_process_is_noticed(harness: CoordinatorHarness, redis_server: RedisServer, hangs: bool) -> None:
    # Only the limit that the test is about is short. A slow machine would exceed a second short limit by chance.
    coordinator, job_id = harness.coordinator(stall_seconds=60.0 if hangs else 3.0), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    own = {
        "REDIS_URL": redis_server.url, "REDIS_PASSWORD": redis_server.password, "STORAGE": harness.artifacts.root,
        "SCRATCH": str(harness.folder / "scratch"),
    }  # fmt: skip
    command = [sys.executable, "-c", _TRAIN, *list(harness.cluster.commands[submission])[3:]]
    environment = {**os.environ, **{f"TLM_TRAINER_{key}": value for key, value in own.items()}}
    hang = harness.folder / "hang"
    environment |= {"HANG": str(hang), "LEAST": "3" if hangs else "60"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            # A worker has a short limit when it knows how long its steps take.
            wait_for(
                lambda: process.poll() or any(b.limit < FIRST_SECONDS for b in harness.job(job_id).beats.values()), 120
            )
            coordinator.round()
            assert harness.job(job_id).state is State.RUNNING
            if hangs:
                hang.touch()
            else:
                os.killpg(process.pid, signal.SIGSTOP)
            wait_for(lambda: coordinator.round() or harness.cluster.stopped, 60)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    error = harness.job(job_id).error
    assert error is not None and ("made no progress" if hangs else "sent no heartbeat") in str(error["message"])
