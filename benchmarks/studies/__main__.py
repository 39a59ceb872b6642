"""Every figure of the studies: `python -m benchmarks.studies`. Each runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.training.training_data import environment


def main() -> None:
    """Run the benchmark with the thread settings of training. Exits with its status."""
    sys.exit(
        subprocess.run([sys.executable, "-m", "benchmarks.studies.bilstm"], env=environment(), check=False).returncode
    )


if __name__ == "__main__":
    main()
