"""Versions that the deployment files share with the rest of the project."""

from __future__ import annotations

import re
import tomllib

from tests.support import ROOT

IMAGES = {"loader": "api"}  # process → image, if the image has the name of another process
# Without `localhost/`, an image would come from a public registry, where anyone may own this name.
OURS = "localhost/tlm-service/"


def our_version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def pinned(image: str) -> bool:
    """Return whether the image's tag is a full version, or `dev` for a local build."""
    name, _, tag = image.partition(":")
    return bool(re.match(r"\d+\.\d+\.\d+", tag)) or (name.startswith(OURS) and tag == "dev")
