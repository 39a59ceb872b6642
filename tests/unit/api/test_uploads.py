"""Names of uploaded files are made harmless."""

from __future__ import annotations

import pytest

from services.api.uploads import harmless


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("train.csv", "train.csv"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\my file.jsonl.gz", "my_file.jsonl.gz"),
        (".bashrc", "bashrc"),
        ("", "file"),
        ("..", "file"),
        ("Daten – größer.csv", "Daten_gr_er.csv"),
        ("x" * 300 + ".csv", "x" * 96 + ".csv"),
        ("a\x00b\n.csv", "a_b_.csv"),
        ("-rf.txt", "rf.txt"),
    ],
)
def test_a_file_name_is_made_harmless(given: str, kept: str) -> None:
    assert harmless(given) == kept


def test_a_second_file_of_a_name_gets_another() -> None:
    assert harmless("a.b.csv", {"a.b.csv", "a-2.b.csv"}) == "a-3.b.csv"
