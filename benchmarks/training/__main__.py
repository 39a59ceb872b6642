"""Run benchmarks of the training engine, each in its own process: `make bench-training`.

Arguments name single benchmarks. Exit with 1 if one fails; the others still run.
"""

from __future__ import annotations

import sys

from benchmarks.shared import program, run_programs
from benchmarks.training.training_data import environment

# Short ones first, so that a missing requirement appears early.
NAMES = ("step", "tokenizing", "workers", "warm_start", "joint_step")

if __name__ == "__main__":
    sys.exit(run_programs([program(f"training.{name}") for name in sys.argv[1:] or NAMES], environment()))
