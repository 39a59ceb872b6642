"""Static files: their addresses, which change with their content, and their integrity hashes."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True)
class Asset:
    """A file that a page loads. url: with a part that changes with the content, so that it may be kept for ever."""

    url: str
    integrity: str


def read_assets(prefix: str) -> dict[str, Asset]:
    """Every script and style sheet by its path below `static`. Those of others have the hash written down beside them.

    A file that was changed after its hash was written down is refused by browsers, as it should be.
    """
    written = {f"vendor/{one['file']}": one["integrity"] for one in vendored()}
    found = {}
    for path in sorted(STATIC.rglob("*")):
        if path.suffix in (".js", ".css", ".svg"):
            name = path.relative_to(STATIC).as_posix()
            integrity = written.get(name) or integrity_of(path)
            tag = hashlib.sha256(integrity.encode()).hexdigest()[:12]
            found[name] = Asset(f"{prefix}/static/{name}?v={tag}", integrity)
    return found


def vendored() -> list[dict[str, str]]:
    """The files of other projects: file, package, version, licence, integrity."""
    listed: list[dict[str, str]] = json.loads((STATIC / "vendor" / "vendor.json").read_text(encoding="utf-8"))
    return listed


def integrity_of(path: Path) -> str:
    """SHA-384 of a file as the `integrity` attribute has it."""
    return "sha384-" + base64.b64encode(hashlib.sha384(path.read_bytes()).digest()).decode()
