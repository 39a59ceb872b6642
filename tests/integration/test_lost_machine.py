"""A machine of Ray's dies with what ran on it: whoever asks learns that it ended, and why, without that machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from services.trainer.cluster import RayCluster, Status
from tlm_client.stack.parts import find_ray
from tlm_client.stack.processes import sweep
from tlm_core.errors import ClusterUnavailable

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

MARK = "TLM_TEST_NODE"
HOST = "127.0.0.1"
NODE = (
    "--block", "--disable-usage-stats", "--log-color", "false", "--node-ip-address", HOST, "--min-worker-port", "0",
    "--max-worker-port", "0", "--dashboard-agent-listen-port", "0", "--object-store-memory", "100000000",
)  # fmt: skip
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "DASHBOARD_METRIC_PORT": "0",
    # How soon the head gives a silent node up; by default within a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "2",
}


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def node(folder: Path, token: str, *arguments: str) -> Iterator[dict[str, str]]:
    """A node of Ray's; its marks find all of its processes."""
    marks = {MARK: uuid.uuid4().hex}
    environment = {**os.environ, **ENVIRONMENT, "RAY_AUTH_TOKEN": token, **marks}
    with open(folder / f"{marks[MARK]}.log", "wb") as log:
        started = subprocess.Popen([find_ray(), "start", *NODE, *arguments], env=environment, stdout=log, stderr=log)
    try:
        yield marks
    finally:
        sweep(marks)
        started.wait()


@pytest.fixture
def short() -> Iterator[Path]:
    """Ray's folder: its path has to be short."""
    folder = Path(tempfile.mkdtemp(prefix="tlm-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def wait_for(true: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except ClusterUnavailable:
            pass
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.3)


def test_a_submission_on_a_lost_machine_has_ended_and_says_why(short: Path, tmp_path: Path) -> None:
    token = uuid.uuid4().hex + uuid.uuid4().hex
    port, jobs, client = free_ports(3)
    head = (
        "--head", "--port", str(port), "--num-cpus", "0", "--no-monitor", "--dashboard-host", HOST, "--dashboard-port",
        str(jobs), "--include-dashboard", "true", "--ray-client-server-port", str(client), "--temp-dir", str(short),
    )  # fmt: skip
    headers = {"Authorization": f"Bearer {token}"}
    with (
        httpx.Client(base_url=f"http://{HOST}:{jobs}", headers=headers, timeout=10.0, trust_env=False) as http,
        node(tmp_path, token, *head),
    ):
        ray = RayCluster(http)
        wait_for(lambda: ray.status("nothing") is Status.UNKNOWN, "a head")
        with node(tmp_path, token, "--address", f"{HOST}:{port}", "--num-cpus", "1") as machine:
            printing = "import time; print('it ran', flush=True); time.sleep(600)"
            wait_for(lambda: ray.submit("s", [sys.executable, "-c", printing], cpus=1.0) is None, "a submission")
            wait_for(lambda: "it ran" in ray.message("s"), "its output")
            assert ray.status("s") is Status.ALIVE
            assert sweep(machine), "nothing was killed"
            wait_for(lambda: ray.status("s") is Status.FAILED, "an end of what ran there")
            said = ray.message("s")
            assert "node" in said
            assert "what it printed cannot be read" in said
            ray.stop("s")
