"""docs/data.md names each fault and warning that the readers of data know, and no other."""

from __future__ import annotations

import ast
import re

from tests.support import ROOT

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
READERS = ("tasks", "corpus", "selection")
TELLING = {"fault", "fault_rows", "warn", "Fault"}


def codes_in_use() -> set[str]:
    """First arguments of the calls that tell a fault or warning."""
    found = set()
    for folder in READERS:
        for path in sorted((ROOT / "tlm_core" / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    code = node.args[0].value
                    if name in TELLING and isinstance(code, str) and re.fullmatch("[a-z]+(_[a-z]+)*", code):
                        found.add(code)
    return found


def test_each_code_is_explained_and_each_explained_code_exists() -> None:
    section = PAGE.split("### Errors and warnings")[1].split("\n### ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    explained = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert len(explained) > 30
    assert explained == codes_in_use()
