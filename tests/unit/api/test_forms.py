"""Names of uploaded files are made safe."""

from __future__ import annotations

import pytest

from services.api.forms import SafeNames, safe_name


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
    names = SafeNames()
    added = ["a.b.csv", "a-2.b.csv", "a.b.csv", "x/a.b.csv", "a-2.b.csv"]
    assert [names.add(name) for name in added] == ["a.b.csv", "a-2.b.csv", "a-3.b.csv", "a-4.b.csv", "a-2-2.b.csv"]


def test_equal_names_need_one_look_up_each() -> None:
    class Counted(dict[str, int]):
        looked_up = 0

        def __contains__(self, name: object) -> bool:
            self.looked_up += 1
            return super().__contains__(name)

    names = SafeNames()
    names._last = counted = Counted()
    assert len({names.add("a.csv") for _ in range(1000)}) == 1000
    assert counted.looked_up <= 2 * 1000
