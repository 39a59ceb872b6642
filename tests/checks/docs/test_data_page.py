"""docs/data-errors.md explains each data error and data warning of the readers."""

from __future__ import annotations

import ast
import re

from tests.support import ROOT

PAGE = (ROOT / "docs" / "data-errors.md").read_text(encoding="utf-8")
READERS = ("tables", "tasks", "corpus", "selection")
REPORTING_CALLS = {"check_null", "fault", "fault_rows", "warn", "Fault", "UnreadableFile"}


def codes_in_use() -> set[str]:
    """Return the first arguments of the calls that report a data error or warning."""
    codes = set()
    for folder in READERS:
        for path in sorted((ROOT / "tlm_core" / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    code = node.args[0].value
                    if name in REPORTING_CALLS and isinstance(code, str) and re.fullmatch("[a-z]+(_[a-z]+)*", code):
                        codes.add(code)
    return codes


def test_page_explains_exactly_the_codes_in_use() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    explained = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert len(explained) > 30
    assert explained == codes_in_use()
