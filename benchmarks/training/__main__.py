"""All figures of the training engine, each benchmark in a process of its own: `make bench-training`.

Exits with 1 if one of them failed; the others are run all the same.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.report import remark
from benchmarks.shared import ROOT
from benchmarks.training.data import environment, prepared

# The shortest first, so that a machine that lacks something says so soon.
NAMES = ("counted", "data_wait", "tokenising", "workers", "warm_start", "joint_step", "gpu")


def main() -> int:
    began = time.monotonic()
    prepared()
    failed = []
    for name in NAMES:
        here = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.training.{name}"]
        if subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode:
            failed.append(name)
        remark(f"{name} took {time.monotonic() - here:.0f} s")
    remark(f"all of them took {time.monotonic() - began:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
