"""The folders of the checkout and of the real data."""

from __future__ import annotations

import os
from pathlib import Path

from tlm_core.errors import NotFound

ROOT = Path(__file__).resolve().parents[1]


def shared_data() -> Path:
    """Return the folder with `tasks/` and `corpus/`. Raises NotFound if it does not exist."""
    folder = Path(os.environ.get("TLM_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "tasks").is_dir():
        raise NotFound(f"No real data at {folder}. Set TLM_SHARED_DATA to a folder with tasks/ and corpus/.")
    return folder
