"""Run the benchmark of the BiLSTM in its own process: `python -m benchmarks.studies`."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.training.training_data import environment


def main() -> None:
    """Run it with the thread settings of training, and exit with its status."""
    sys.exit(
        subprocess.run([sys.executable, "-m", "benchmarks.studies.bilstm"], env=environment(), check=False).returncode
    )


if __name__ == "__main__":
    main()
