"""The code blocks of README.md and docs/, and the commands in them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SHELL = frozenset(("", "sh", "bash", "shell", "console"))
# The first words of shell commands. Other blocks without a language are drawings and listings.
PROGRAMS = ("tlm", "curl", "make", "source", "export", "docker", "kubectl", "deploy/make-env", "python", "python3")


@dataclass(frozen=True)
class Block:
    """A code block with its page and its language ("" for none)."""

    page: Path
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Return the shell commands, each on one line."""
        if self.language not in SHELL:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.split(" ", 1)[0] in PROGRAMS]


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks in page order: fenced, or after a blank line and indented by four spaces."""
    matches = re.finditer(
        r"^```(?P<language>\w*)\n(?P<fenced>.*?)^```$|(?<=\n\n)(?P<indented>(?:^    [^\n]*\n)+)",
        page.read_text(encoding="utf-8") + "\n",
        re.MULTILINE | re.DOTALL,
    )
    return [Block(page, m["language"] or "", m["fenced"] or textwrap.dedent(m["indented"] or "")) for m in matches]


def commands_of(page: Path) -> list[str]:
    return [command for block in blocks_of(page) for command in block.commands]
