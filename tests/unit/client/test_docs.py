"""Every `tlm` command that the documentation shows is one that exists, with options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support import ROOT
from tlm_client.cli import app

PAGES = (ROOT / "README.md", ROOT / "docs" / "quickstart.md")


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("tlm ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_documentation_are_understood(page: Path) -> None:
    found = commands(page)
    assert len(found) >= 5
    for line in found:
        words = shlex.split(line, comments=True)[1:]
        # With --help nothing is run, but an option or a command that does not exist is still an error.
        result = CliRunner().invoke(app, [*words, "--help"])
        assert result.exit_code == 0, f"{line}\n{result.output}"
