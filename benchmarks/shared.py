"""Where the checkout and the real data lie, for every benchmark."""

from __future__ import annotations

import os
from pathlib import Path

from tlm_core.errors import NotFound

ROOT = Path(__file__).resolve().parents[1]


def shared_data() -> Path:
    """The folder with `tasks/` and `corpus/`. Raises NotFound with what to set."""
    folder = Path(os.environ.get("TLM_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "tasks").is_dir():
        raise NotFound(f"no real data at {folder}; set TLM_SHARED_DATA to a folder with tasks/ and corpus/")
    return folder
