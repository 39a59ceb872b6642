"""Terms: Unicode's word rules, the short way for plain texts, and pairs of characters where there are no blanks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlm_core.selection.analysis import LONGEST_TERM, analysis_of, terms

PLAIN = "abzAZ019_'.:,;-!?\"()[]<>/\\@# \t\nÀÖØöøÿĀįıĲſßÅ\u00a0°±×÷§–—‘’“”…•"


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet=PLAIN, max_size=40))
def test_the_short_way_cuts_as_the_unicode_tables_do(text: str) -> None:
    # A Han character at the end is a word of its own and forces the tables.
    assert terms(text, "standard") == terms(f"{text} 漢", "standard")[:-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, U.S.A.!", ["don't", "stop", "u.s.a"]),
        ("3.14 and 1,000", ["3.14", "and", "1,000"]),
        ("snake_case __x__ _", ["snake_case", "__x__"]),
        ("漢字 and かな", ["漢", "字", "and", "か", "な"]),
        ("ΣΊΣΥΦΟΣ", ["σίσυφοσ"]),
        ("", []),
        (" \n…", []),
    ],
)
def test_words_are_those_of_the_unicode_annex(text: str, expected: list[str]) -> None:
    assert terms(text, "standard") == expected


def test_terms_longer_than_lucene_keeps_are_cut() -> None:
    assert [len(term) for term in terms("a" * 600 + " b", "standard")] == [LONGEST_TERM, LONGEST_TERM, 90, 1]
    assert [len(term) for term in terms("ä漢" + "a" * 300, "standard")] == [1, 1, LONGEST_TERM, 45]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("自然言語", ["自然", "然言", "言語"]),
        ("AI と機械 学習", ["ai", "と機", "機械", "学習"]),
        ("ｶﾀｶﾅ字", ["カタ", "タカ", "カナ", "ナ字"]),
        ("字 a_b", ["字", "a", "b"]),
        ("ไทย", ["ไท", "ทย"]),
    ],
)
def test_scripts_without_blanks_become_pairs(text: str, expected: list[str]) -> None:
    assert terms(text, "bigrams") == expected


@pytest.mark.parametrize(
    ("language", "expected"),
    [("en", "standard"), ("de-AT", "standard"), ("zh", "bigrams"), ("ZH-Hant-TW", "bigrams"), ("ja_JP", "bigrams"),
     ("th", "bigrams"), ("und", "standard"), ("", "standard")],
)  # fmt: skip
def test_the_language_decides_the_analysis(language: str, expected: str) -> None:
    assert analysis_of(language) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_terms_without_blanks_in_them(text: str) -> None:
    for analysis in ("standard", "bigrams"):
        found = terms(text.encode("utf-8", "replace").decode(), analysis)  # type: ignore[arg-type]
        assert all(term and not any(letter in " \t\n\r\f\v" for letter in term) for term in found)
