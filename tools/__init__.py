"""Checks and generators for developers."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tracked_files(*patterns: str) -> list[Path]:
    """Return the files that git tracks and that match one of the patterns. A pattern `*.py` also matches in folders."""
    command = ["git", "ls-files", "-z", "--", *patterns]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).exists()]
