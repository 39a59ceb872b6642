"""Local JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Raises OSError, or ValueError for invalid JSON."""
    return json.loads(path.read_text(encoding="utf-8"))
