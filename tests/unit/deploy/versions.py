"""Versions that the deployment files have to agree on with the rest of the project."""

from __future__ import annotations

import re
import tomllib

from tests.support import ROOT

# Never a bare name: those are looked for in a public place, where anyone may own them.
OURS = "localhost/tlm-service/"


def our_version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def pinned(image: str) -> bool:
    """Whether the image's tag is a full version, or `dev` for one that is built by hand."""
    name, _, tag = image.partition(":")
    return bool(re.match(r"\d+\.\d+\.\d+", tag)) or (name.startswith(OURS) and tag == "dev")
