"""Measure the gateway: `make bench-gateway`, or `python -m benchmarks.gateway submit` for one part.

The script starts and stops Redis and the gateway. Estimates train jobs, so they are a separate script:
`python -m benchmarks.gateway.estimates`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.gateway.command_line import measure_commands
from benchmarks.gateway.files import measure_downloads, measure_validation
from benchmarks.gateway.predictions import measure_predictions
from benchmarks.gateway.requests import measure_status, measure_submissions
from benchmarks.gateway.server import Gateway, run_gateway
from benchmarks.gateway.streams import measure_streams
from benchmarks.report import remark

PARTS: dict[str, Callable[[Gateway, float], None]] = {
    "submit": measure_submissions,
    "status": measure_status,
    "events": lambda gateway, _: measure_streams(gateway),
    "download": lambda gateway, _: measure_downloads(gateway),
    "commands": lambda gateway, _: measure_commands(gateway),
    "predict": lambda gateway, _: measure_predictions(gateway),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "validation", []], help="default: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of each run under load")
    options = parser.parse_args()
    parts = options.parts or [*PARTS, "validation"]
    if set(parts) & set(PARTS):
        with run_gateway() as gateway:
            gateway.submit_job()
            for part in filter(parts.__contains__, PARTS):
                remark(part)
                PARTS[part](gateway, options.seconds)
    if "validation" in parts:
        remark("validation")
        with tempfile.TemporaryDirectory(prefix="tlm-bench-") as folder:
            measure_validation(Path(folder))


if __name__ == "__main__":
    main()
