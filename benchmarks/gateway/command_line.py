"""Run `tlm` commands as processes, from their start to their end."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.gateway.server import Gateway
from benchmarks.report import figure


def measure_commands(gateway: Gateway, *, count: int = 10) -> None:
    """Run each command `count` times. The first run, which may compile modules, does not count."""
    address = ("--url", f"http://127.0.0.1:{gateway.port}", "--token", gateway.token)
    for name, arguments, goal in (("version", ["--version"], 300), ("help", ["--help"], 300), ("jobs", ["jobs"], 600)):
        seconds = []
        for _ in range(count + 1):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "tlm_client", *address, *arguments], check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
        figure(f"tlm_{name}_p50", [1e3 * sorted(seconds[1:])[count // 2]], unit="ms", goal=goal, better="lower")
