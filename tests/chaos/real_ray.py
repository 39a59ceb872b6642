"""A real Ray head and node on this machine, with the interface of `JobServer`: faults can find the worker processes."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.trainer.cluster import PROGRAM
from tests.redis_server import RedisServer
from tests.support import ROOT, wait_for
from tlm_client.stack.parts import ray_executable
from tlm_client.stack.processes import free_ports, kill_processes, list_processes

_PATIENCE = 60.0  # seconds for the start of a head, which can hang without Redis
_SCRIPT = """#!/bin/sh
exec "{python}" -c "from tests.chaos.processes import run_on_ray; run_on_ray()" "$@"
"""

# The command line of Ray does not start a second node on loopback.
_NODE = """
import signal
from ray._private.node import Node
from ray._private.parameter import RayParams
own = {{"num_cpus": {cpus}, "num_gpus": 0, "object_store_memory": 100 << 20, "include_log_monitor": False}}
ports = {{"min_worker_port": 0, "max_worker_port": 0, "node_manager_port": 0, "dashboard_agent_listen_port": 0}}
Node(RayParams(gcs_address="127.0.0.1:{port}", node_ip_address="127.0.0.1", **own, **ports), head=False)
signal.pause()
"""


@dataclass(frozen=True)
class _Group:
    """A process group, as `send` expects it."""

    pid: int


@dataclass
class RayRun:
    """A program that Ray runs. Ray itself notices what happens to its processes, so `lost` has no effect."""

    process: _Group
    arguments: list[str]
    lost: bool = False


class RayHead:
    """A head that stores its state in Redis and offers no CPU, and a node that offers CPUs, as in deploy/.

    environment: variables of the workers. cpus: enough for all jobs at once. If the head dies, Ray never frees the
    CPUs of a submission that waits for room. python: the script that the coordinator must run as Python.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], redis: RedisServer, cpus: int = 16) -> None:
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        self.python = folder / "python"
        self.python.write_text(_SCRIPT.format(python=sys.executable))
        self.python.chmod(0o755)
        self._temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path.
        self._marks = {"CHAOS_RAY": str(self._temporary)}
        self._log = folder / "ray.out"
        self._ports, self._redis = free_ports(3), redis
        self.url = f"http://127.0.0.1:{self._ports[1]}"
        self._head, self._answered = self._start_head(), time.monotonic()
        try:
            wait_for(self.answers, 240)
            node = _NODE.format(port=self._ports[0], cpus=cpus)
            self._start([sys.executable, "-c", node], "node", dict(environment))
        except AssertionError:
            self.close()
            raise

    def _start_head(self) -> subprocess.Popen[bytes]:
        port, dashboard, client = map(str, self._ports)
        command = [
            ray_executable(), "start", "--head", "--block", "--disable-usage-stats", "--no-monitor",
            "--node-ip-address", "127.0.0.1", "--port", port, "--min-worker-port", "0", "--max-worker-port", "0",
            "--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard, "--include-dashboard", "true",
            "--dashboard-agent-listen-port", "0", "--ray-client-server-port", client,
            "--include-log-monitor", "false", "--num-cpus", "0", "--num-gpus", "0",
            "--object-store-memory", str(100 << 20), "--temp-dir", str(self._temporary),
            "--redis-password", self._redis.password,
        ]  # fmt: skip
        state = {"RAY_REDIS_ADDRESS": f"127.0.0.1:{self._redis.port}", "RAY_external_storage_namespace": "tlm-ray"}
        return self._start(command, "head", state)

    def _start(self, command: list[str], part: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        own = {"PYTHONPATH": str(ROOT), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        own |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "600", "RAY_JOB_START_TIMEOUT_SECONDS": "3600", **self.token}
        own |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # The head calls `python`.
        own |= {"DASHBOARD_METRIC_PORT": "0", "SPT_NOENV": "1", **self._marks, "CHAOS_RAY_PART": part}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, env={**os.environ, **environment, **own}, stdout=log, stderr=log, start_new_session=True
            )

    def answers(self) -> bool:
        """Return whether the head answers."""
        time.sleep(0.2)
        try:
            headers = {"Authorization": f"Bearer {self.token['RAY_AUTH_TOKEN']}"}
            return httpx.get(f"{self.url}/api/jobs/", headers=headers, timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def kill_head(self) -> bool:
        """Kill all processes of the head, but none of the node. Return whether the head had processes."""
        ran = False
        while kill_processes({**self._marks, "CHAOS_RAY_PART": "head"}):
            ran = True
            time.sleep(0.1)
        return ran

    def supervise(self) -> None:
        """Restart the head if it has ended, for example without Redis, or if it has not answered for a minute."""
        if self.answers():
            self._answered = time.monotonic()
        if self._head.poll() is not None or time.monotonic() - self._answered > _PATIENCE:
            self._answered = time.monotonic()
            self.kill_head()
            (self._temporary / "ray_current_cluster").unlink(missing_ok=True)  # It names the head that has ended.
            self._head = self._start_head()

    def running(self) -> list[RayRun]:
        runs = {}
        for pid in list_processes(self._marks):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if PROGRAM in words:
                    group = os.getpgid(pid)
                    runs[group] = RayRun(_Group(group), words[words.index(PROGRAM) + 1 : -1])
            except OSError:  # It has ended.
                continue
        return [run for run in runs.values() if "--job" in run.arguments]

    def close(self) -> None:
        """End Ray and all that it has started."""
        while kill_processes(self._marks):
            time.sleep(0.1)
        shutil.rmtree(self._temporary, ignore_errors=True)
