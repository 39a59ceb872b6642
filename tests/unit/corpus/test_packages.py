from __future__ import annotations

from pathlib import Path

import pytest

from tlm_core.corpus.packages import (
    Document,
    docstrings,
    is_prose,
    package_files,
    package_folders,
    passages_of,
    read_files,
)
from tlm_core.corpus.passages import passage_id, word_count

CODE = '''"""Module says what
it is for."""
import os
os.environ["TLM_TEST_PACKAGE_WAS_RUN"] = "yes"

def first():
    """First thing.

    Heading
    -------
    Body.
    """
    def inner():
        "Inner thing."
    return "no docstring"

class Thing:
    """A thing."""
    if os.name:
        try:
            async def method(self):
                """Guarded."""
        except ValueError:
            def method(self):
                """Otherwise."""
'''


def words(count: int, tag: str = "word") -> str:
    return " ".join(f"{tag}{'abcdefghij'[i % 10]}" for i in range(count)) + "."


def doc(text: str, file: str = "p/a.py", docstring: bool = True) -> Document:
    return Document("p", file, text, docstring)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    files = {
        "pkg/__init__.py": CODE,
        "pkg/broken.py": '"""Never seen."""\ndef (:\n',
        "pkg/template.py": 'print "python 2 " """and no docstring"""\n',
        "pkg/latin.py": '# -*- coding: latin-1 -*-\n"""Gr\xfcn."""\n',
        "pkg/README.md": "# Title\n\n![badge](https://x/y.svg) <img src='a.png'> See [the docs](https://x/y).\n",
        "pkg/LICENSE.txt": "Do what you like.",
        "pkg/__pycache__/pkg.py": '"""Cached."""',
        "services/docs/tutorial.md": "The documentation of this service.",
        "single.py": '"""A single module."""',
        "pkg-1.0.dist-info/METADATA": "Name: pkg\nSummary: Says it shortly.\n\nLong *description*.\n=====\nEnd.\n",
        "pkg-1.0.dist-info/RECORD": "x",
        "pkg-1.0.dist-info/licenses/NOTES.txt": "Legal.",
    }
    for name, body in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(body.encode("latin-1"))
    (tmp_path / "pkg/large.py").write_text('"""Too large."""\n' + "#" * 2_000_000)
    return tmp_path


def test_docstrings_are_read_in_order_without_rules() -> None:
    documents = [" ".join(text.split()) for text in docstrings(CODE.encode())]
    assert documents == [
        "Module says what it is for.",
        "First thing. Heading Body.",
        "Inner thing.",
        "A thing.",
        "Guarded.",
        "Otherwise.",
    ]


def test_documentation_is_read_without_running_code(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TLM_TEST_PACKAGE_WAS_RUN", raising=False)
    by_file = read_files(package_files([site]))
    documents = [(d.package, d.file, " ".join(d.text.split()), d.docstring) for file in by_file for d in file]
    assert documents == [
        ("single", "single.py", "A single module.", True),
        ("pkg", "pkg/README.md", "# Title See the docs.", False),
        *(("pkg", "pkg/__init__.py", " ".join(text.split()), True) for text in docstrings(CODE.encode())),
        ("pkg", "pkg/latin.py", "Grün.", True),
        ("pkg", "pkg-1.0.dist-info/METADATA", "Says it shortly. Long *description*. End.", False),
    ]
    import os

    assert "TLM_TEST_PACKAGE_WAS_RUN" not in os.environ


def test_files_are_read_in_order_with_progress(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"m{number}.py").write_text(f'"""Module {number}."""\n' + "# padding\n" * 190_000)
    seen: list[tuple[int, int]] = []
    documents = read_files(package_files([tmp_path]), progress=lambda done, total: seen.append((done, total)))
    assert [document.text for (document,) in documents] == [f"Module {number}." for number in range(5)]
    assert len(seen) == 5 and seen[-1][0] == seen[-1][1] > 9_000_000


def test_short_docstrings_of_a_file_are_joined_and_never_across_files() -> None:
    short = [doc("Return it"), doc("Sets the thing for all who ask for it to be set"), doc(words(12)), doc(words(3))]
    passages = list(passages_of([*short, doc("Alone here.", "p/b.py")]))
    assert [p.text for p in passages] == [
        f"Return it. Sets the thing for all who ask for it to be set. {words(12)}",
    ]
    assert all(p.source == "package:p" and p.id == passage_id(p.text) for p in passages)


def test_longer_docstrings_stand_alone_and_long_ones_are_cut() -> None:
    passages = list(passages_of([doc(words(15)), doc(words(20, "other")), doc(words(600, "more"))]))
    assert [word_count(p.text) for p in passages[:2]] == [15, 20]
    assert len(passages) > 4 and sum(word_count(p.text) for p in passages[2:]) == 600


def test_tables_and_scraps_are_no_prose() -> None:
    assert is_prose(words(15))
    assert not is_prose(words(14))
    assert not is_prose("0.25 1.5 >>> " * 20 + words(15))


def test_the_standard_library_is_among_the_folders() -> None:
    import json

    assert Path(json.__file__).resolve().parents[1] in package_folders()
