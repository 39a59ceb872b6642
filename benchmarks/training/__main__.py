"""Run benchmarks of the training engine, each in its own process: `make bench-training`.

Arguments name the benchmarks (default: all). If one fails, the others still run, and the exit code is 1.
"""

from __future__ import annotations

import sys

from benchmarks.shared import program, run_programs
from benchmarks.training.training_data import environment

# The short benchmarks come first, so that a missing requirement appears early.
NAMES = ("step", "tokenizing", "workers", "warm_start", "joint_step")

if __name__ == "__main__":
    sys.exit(run_programs([program(f"training.{name}") for name in sys.argv[1:] or NAMES], environment()))
