"""Names of uploaded files are made safe."""

from __future__ import annotations

import pytest

from services.api.forms import safe_name


@pytest.mark.parametrize(
    ("name", "expected"),
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
def test_file_names_become_safe(name: str, expected: str) -> None:
    assert safe_name(name) == expected


def test_duplicate_file_name_gets_a_number() -> None:
    assert safe_name("a.b.csv", {"a.b.csv", "a-2.b.csv"}) == "a-3.b.csv"
