"""Run each retrieval benchmark in its own process: `make bench-retrieval`.

Arguments go to the benchmark `growth`. If a benchmark fails, the others still run, and the exit code is 1.
"""

from __future__ import annotations

import sys

from benchmarks.shared import program, run_programs

if __name__ == "__main__":
    growth = program("retrieval.growth", *sys.argv[1:])
    others = [program(f"retrieval.{name}") for name in ("search", "ingest", "selection")]
    sys.exit(run_programs([*others[:2], growth, others[2]]))
