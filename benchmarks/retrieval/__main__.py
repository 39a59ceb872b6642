"""Run each retrieval benchmark in its own process: `make bench-retrieval`.

`--three-million` applies to the growth of the index. Exit with 1 if one fails; the others still run.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.report import remark
from benchmarks.retrieval.retrieval_data import program

NAMES = ("search", "ingest", "growth", "selection")


def main() -> int:
    failed = []
    for name in NAMES:
        start = time.monotonic()
        arguments = sys.argv[1:] if name == "growth" else []
        if subprocess.run(program(name, *arguments), check=False).returncode:
            failed.append(name)
        remark(f"{name} took {time.monotonic() - start:.0f} s")
    if failed:
        remark(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
