"""Run each retrieval benchmark in its own process: `make bench-retrieval`.

`--three-million` applies to the growth of the index. Exit with 1 if one fails; the others still run.
"""

from __future__ import annotations

import sys

from benchmarks.shared import program, run_programs

if __name__ == "__main__":
    growth = program("retrieval.growth", *sys.argv[1:])
    others = [program(f"retrieval.{name}") for name in ("search", "ingest", "selection")]
    sys.exit(run_programs([*others[:2], growth, others[2]]))
