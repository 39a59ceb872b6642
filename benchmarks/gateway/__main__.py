"""The gateway's figures: `make bench-gateway`. It starts what it needs and ends by itself.

`python -m benchmarks.gateway submit` measures one part alone; estimates, which train ten jobs, are a program of their
own: `python -m benchmarks.gateway.estimates`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.gateway.files import downloads, validation
from benchmarks.gateway.predictions import predictions
from benchmarks.gateway.requests import looks, submits
from benchmarks.gateway.server import gateway
from benchmarks.gateway.streams import streams
from benchmarks.report import remark

PARTS = ("submit", "status", "events", "download", "predict", "validation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run under load")
    options = parser.parse_args()
    wanted = options.parts or PARTS
    if set(wanted) - {"validation"}:
        with gateway() as served:
            for part in PARTS:
                if part in wanted and part != "validation":
                    remark(part)
                    if part != "submit" and not served.jobs.list_jobs("default", limit=1)[0]:
                        served.http().post("/v1/jobs", json={"dataset": "toy", "corpus": "docs"}).raise_for_status()
                    match part:
                        case "submit":
                            submits(served, seconds=options.seconds)
                        case "status":
                            looks(served, seconds=options.seconds)
                        case "events":
                            streams(served)
                        case "download":
                            downloads(served)
                        case "predict":
                            predictions(served)
    if "validation" in wanted:
        remark("validation")
        with tempfile.TemporaryDirectory(prefix="tlm-bench-") as folder:
            validation(Path(folder))


if __name__ == "__main__":
    main()
