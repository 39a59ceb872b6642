"""docs/comparison.md ticks for this service only what a test holds, and says of all others where it is from."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT

PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
TABLE = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
HEAD, ROWS = TABLE[0], TABLE[2:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_tick_for_this_service_names_a_test_that_exists(row: list[str]) -> None:
    here = row[1]
    named = re.search(r"`(tests/[\w/]+\.py)::(test_\w+)`$", here)
    if here.startswith("–"):
        assert named is None
        return
    assert here.startswith("✓") and named, here
    assert re.search(rf"^(async )?def {named[2]}\(", (ROOT / named[1]).read_text(encoding="utf-8"), re.MULTILINE), here


def test_every_row_has_a_mark_for_every_service() -> None:
    assert len(ROWS) >= 20
    for row in ROWS:
        assert len(row) == len(HEAD), row[0]
        assert all(re.match(r"(✓|\(✓\)|–|\?)( |$)", cell) for cell in row[1:]), row[0]


def test_every_service_has_a_foot_note_and_the_page_a_date() -> None:
    notes = re.findall(r"^(\d)\. ", PAGE, re.MULTILINE)
    assert [re.search(r"\[(\d)\]$", name)[1] for name in HEAD[2:]] == notes  # type: ignore[index]
    assert re.search(r"sources were read on\s\d{4}-\d\d-\d\d", PAGE)
