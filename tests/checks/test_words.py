"""The check of words and sentences itself."""

from __future__ import annotations

from tools.check_words import LONGEST_SENTENCE, identifiers, long_sentences

LONG = "word " * (LONGEST_SENTENCE + 1)


def test_long_sentences_are_reported_with_their_line() -> None:
    text = f"# Title\n\nShort. Also short.\n\n- first item\n- {LONG}\n"
    assert [line for line, _ in long_sentences(text)] == [6]


def test_code_tables_headings_and_link_targets_are_no_sentences() -> None:
    words = "[word](a b c) " * LONGEST_SENTENCE
    assert not list(long_sentences(f"# {LONG}\n\n| {LONG} |\n\n```\n{LONG}\n```\n\n{words}\n"))


def test_definitions_are_identifiers() -> None:
    assert {name for _, name in identifiers("def tell(found):\n    kept = 1")} == {"tell", "found", "kept"}
