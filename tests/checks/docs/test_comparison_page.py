"""docs/comparison.md cites a test for each feature of this service, and a source for each other service."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT

PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
TABLE = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
HEAD, ROWS = TABLE[0], TABLE[2:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_feature_of_this_service_cites_an_existing_test(row: list[str]) -> None:
    mark = row[1]
    test = re.search(r"`(tests/[\w/]+\.py)::(test_\w+)`$", mark)
    if mark.startswith("–"):
        assert test is None
        return
    assert mark.startswith("✓") and test, mark
    assert re.search(rf"^(async )?def {test[2]}\(", (ROOT / test[1]).read_text(encoding="utf-8"), re.MULTILINE), mark


def test_each_row_has_a_mark_for_each_service() -> None:
    assert len(ROWS) >= 20
    for row in ROWS:
        assert len(row) == len(HEAD), row[0]
        assert all(re.match(r"(✓|\(✓\)|–|\?)( |$)", cell) for cell in row[1:]), row[0]


def test_each_service_has_a_footnote_and_the_page_a_date() -> None:
    notes = re.findall(r"^(\d)\. ", PAGE, re.MULTILINE)
    assert [re.search(r"\[(\d)\]$", name)[1] for name in HEAD[2:]] == notes  # type: ignore[index]
    assert re.search(r"sources were read on\s\d{4}-\d\d-\d\d", PAGE)
