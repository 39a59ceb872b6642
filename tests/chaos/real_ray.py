"""A real Ray head on this machine, with the interface of `JobServer`: workers are processes that a fault can find."""

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
from tests.support import ROOT, wait_for
from tlm_client.stack.parts import find_ray
from tlm_client.stack.processes import find_processes, free_ports, kill_processes

_SCRIPT = """#!/bin/sh
exec "{python}" -c "from tests.chaos.processes import run_on_ray; run_on_ray()" "$@"
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
    """Starts Ray with these variables for its workers. python: what the coordinator must run as Python."""

    def __init__(self, folder: Path, environment: Mapping[str, str], cpus: int = 4) -> None:
        port, client_port = free_ports(2)
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        self.url = f"http://127.0.0.1:{port}"
        self.python = folder / "python"
        self.python.write_text(_SCRIPT.format(python=sys.executable))
        self.python.chmod(0o755)
        self._temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path.
        command = [
            find_ray(), "start", "--head", "--block", "--disable-usage-stats", "--no-monitor",
            "--node-ip-address", "127.0.0.1", "--port", "0", "--min-worker-port", "0", "--max-worker-port", "0",
            "--dashboard-host", "127.0.0.1", "--dashboard-port", str(port), "--include-dashboard", "true",
            "--dashboard-agent-listen-port", "0", "--ray-client-server-port", str(client_port),
            "--include-log-monitor", "false", "--num-cpus", str(cpus), "--num-gpus", "0",
            "--object-store-memory", str(100 << 20), "--temp-dir", str(self._temporary),
        ]  # fmt: skip
        own = {"PYTHONPATH": str(ROOT), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        self._marks = {"CHAOS_RAY": str(self._temporary)}
        own |= {**self._marks, "DASHBOARD_METRIC_PORT": "0", "SPT_NOENV": "1"}
        own |= {"RAY_JOB_START_TIMEOUT_SECONDS": "3600", **self.token}
        with (folder / "ray.out").open("wb") as log:
            environment = {**os.environ, **environment, **own}
            self._head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(self._answers, 240)
        except AssertionError:
            self.close()
            raise

    def _answers(self) -> bool:
        time.sleep(1)
        try:
            headers = {"Authorization": f"Bearer {self.token['RAY_AUTH_TOKEN']}"}
            return httpx.get(f"{self.url}/api/jobs/", headers=headers, timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def running(self) -> list[RayRun]:
        runs = {}
        for pid in find_processes(self._marks):
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
        self._head.kill()
        kill_processes(self._marks)
        self._head.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)
