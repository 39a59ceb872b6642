"""docs/reliability.md names existing tests."""

from __future__ import annotations

import re

from tests.support import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_each_named_test_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = {name for source in sources for name in re.findall(r"^def (test_\w+)\(", source, re.MULTILINE)}
    assert named and named <= defined, named - defined


def test_each_named_file_of_tests_exists() -> None:
    named = set(re.findall(r"`(tests/[\w*/]+\.py)`", PAGE))
    assert named and all(list(ROOT.glob(name)) for name in named)
