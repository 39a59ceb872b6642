"""Measure the gateway: `make bench-gateway`, or `python -m benchmarks.gateway submit` for one part.

The script starts and stops Redis and the gateway. The benchmark of estimates trains jobs, so it is a separate script:
`python -m benchmarks.gateway.estimates`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gateway.files import measure_downloads, measure_validation
from benchmarks.gateway.predictions import measure_predictions
from benchmarks.gateway.requests import measure_status, measure_submissions
from benchmarks.gateway.server import Gateway, run_gateway
from benchmarks.gateway.streams import measure_streams
from benchmarks.report import figure, remark


def _measure_commands(gateway: Gateway) -> None:
    """Measure `tlm --version`, `tlm --help` and `tlm jobs`, each in ten runs after a run that may compile modules."""
    address = ("--url", f"http://127.0.0.1:{gateway.port}", "--token", gateway.token)
    for name, arguments, goal in (("version", ["--version"], 300), ("help", ["--help"], 300), ("jobs", ["jobs"], 600)):
        seconds = []
        for _ in range(11):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "tlm_client", *address, *arguments], check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
        figure(f"tlm_{name}_p50", [1e3 * sorted(seconds[1:])[5]], unit="ms", goal=goal, better="lower")


PARTS: dict[str, Callable[[Gateway], None]] = {
    "submit": measure_submissions,
    "status": measure_status,
    "events": measure_streams,
    "download": measure_downloads,
    "commands": _measure_commands,
    "predict": measure_predictions,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "validation", []], help="default: all")
    parts = parser.parse_args().parts or [*PARTS, "validation"]
    if set(parts) & set(PARTS):
        with run_gateway() as gateway:
            gateway.submit_job()
            for part in filter(parts.__contains__, PARTS):
                remark(part)
                PARTS[part](gateway)
    if "validation" in parts:
        remark("validation")
        with tempfile.TemporaryDirectory(prefix="tlm-bench-") as folder:
            measure_validation(Path(folder))


if __name__ == "__main__":
    main()
