"""Versions that the deployment files share with the rest of the project."""

from __future__ import annotations

import re
import tomllib

from tests.support import ROOT

# A bare name would resolve to a public registry, where anyone may own it.
IMAGES = {"loader": "api"}  # the images of processes that have none of their own
OURS = "localhost/tlm-service/"


def our_version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def pinned(image: str) -> bool:
    """Return whether the image's tag is a full version, or `dev` for a local build."""
    name, _, tag = image.partition(":")
    return bool(re.match(r"\d+\.\d+\.\d+", tag)) or (name.startswith(OURS) and tag == "dev")
