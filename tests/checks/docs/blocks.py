"""The code blocks of README.md and docs/, and the commands in them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SHELL = frozenset(("", "sh", "bash", "shell", "console"))
# What is typed into a shell; drawings and listings, which stand in blocks without a language too, begin otherwise.
PROGRAMS = ("tlm", "curl", "make", "source", "export", "docker", "kubectl", "deploy/make-env", "python", "python3")


@dataclass(frozen=True)
class Block:
    """A block of code: the page that it stands on, its language ("" for none) and its text."""

    page: Path
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its commands, each on one line."""
        if self.language not in SHELL:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.split(" ", 1)[0] in PROGRAMS]


def blocks_of(page: Path) -> list[Block]:
    """Fenced blocks, and those that are indented by four spaces, in their order."""
    found = re.finditer(
        r"^```(?P<language>\w*)\n(?P<fenced>.*?)^```$|(?P<indented>(?:^    .*\n)+)",
        page.read_text(encoding="utf-8") + "\n",
        re.MULTILINE | re.DOTALL,
    )
    return [
        Block(page, one["language"] or "", one["fenced"] or textwrap.dedent(one["indented"] or "")) for one in found
    ]


def commands_of(page: Path) -> list[str]:
    return [command for block in blocks_of(page) for command in block.commands]
