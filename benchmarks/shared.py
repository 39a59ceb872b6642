"""The folders of the checkout and of the real data, and folders that benchmarks write once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tlm_core.errors import NotFound

ROOT = Path(__file__).resolve().parents[1]


def shared_data() -> Path:
    """Return the folder with `tasks/` and `corpus/`. Raises NotFound if it does not exist."""
    folder = Path(os.environ.get("TLM_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "tasks").is_dir():
        raise NotFound(f"No real data at {folder}. Set TLM_SHARED_DATA to a folder with tasks/ and corpus/.")
    return folder


def write_once(folder: Path, write: Callable[[Path], object]) -> Path:
    """Return `folder`. If it is missing, `write` writes a temporary folder first, and a rename publishes it."""
    if not folder.exists():
        temporary = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.rename(folder)
    return folder
