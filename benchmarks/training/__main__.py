"""Run each benchmark of the training engine in its own process: `make bench-training`.

Exit with 1 if one fails; the others still run.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.report import remark
from benchmarks.shared import ROOT
from benchmarks.training.training_data import environment, prepared

# Short ones first, so that a missing requirement appears early.
NAMES = ("flop_count", "data_wait", "tokenizing", "workers", "warm_start", "joint_step", "gpu")


def main() -> int:
    start = time.monotonic()
    prepared()
    failed = []
    for name in NAMES:
        benchmark_start = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.training.{name}"]
        if subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode:
            failed.append(name)
        remark(f"{name} took {time.monotonic() - benchmark_start:.0f} s")
    remark(f"all took {time.monotonic() - start:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
