"""A worker process that hangs or is stopped, next to a coordinator that watches it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.contract.coordinator_harness import CoordinatorHarness
from tests.redis_server import RedisServer
from tests.support import ROOT, wait_for
from tlm_core.jobs.states import State

# The limits of the real program, divided by 50.
_TRAIN = """
import sys, time
from services.common import liveness
from services.trainer import program, reporter
from tlm_core.pulse import PULSE
from tlm_core.stages import Stage

liveness.LEAST_SECONDS = 0.6
reporter.JobReporter.__init__.__kwdefaults__.update(heartbeat=0.1, interval=0.1)

def train(context):
    with PULSE.pace(steady=True):
        for step in range(1_000_000):
            PULSE.advance()
            PULSE.warm_up()
            time.sleep(0.02)
            if step == 20:
                print("ready", flush=True)
            while step > 20 and HANGS:
                pass

Stage.load = lambda stage: train
program.main()
"""


@pytest.mark.parametrize("hangs", [True, False])
def test_stuck_worker_process_is_noticed(harness: CoordinatorHarness, redis_server: RedisServer, hangs: bool) -> None:
    coordinator, job_id = harness.coordinator(stall_seconds=2.0), harness.submit()
    submission = harness.until_submitted(coordinator, job_id)
    own = {
        "REDIS_URL": redis_server.url, "REDIS_PASSWORD": redis_server.password, "STORAGE": harness.artifacts.root,
        "SCRATCH": str(harness.folder / "scratch"),
    }  # fmt: skip
    command = [
        sys.executable,
        "-c",
        _TRAIN.replace("HANGS", str(hangs)),
        *list(harness.cluster.commands[submission])[3:],
    ]
    environment = {**os.environ, **{f"TLM_TRAINER_{key}": value for key, value in own.items()}}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            coordinator.round()
            assert harness.job(job_id).state is State.RUNNING
            if not hangs:
                os.killpg(process.pid, signal.SIGSTOP)
            wait_for(lambda: coordinator.round() or harness.cluster.stopped, 20)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    error = harness.job(job_id).error
    assert error is not None and ("made no progress" if hangs else "sent no heartbeat") in str(error["message"])
