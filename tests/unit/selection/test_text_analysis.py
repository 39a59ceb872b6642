"""Terms: Unicode word rules, the fast path for plain texts, and character pairs for scripts without blanks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlm_core.selection.text_analysis import LONGEST_TERM, Analysis, analysis_of, terms

PLAIN = "abzAZ019_'.:,;-!?\"()[]<>/\\@# \t\nÀÖØöøÿĀįıĲſßÅ\u00a0°±×÷§–—‘’“”…•"


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet=PLAIN, max_size=40))
def test_fast_path_gives_the_terms_of_the_unicode_rules(text: str) -> None:
    # The Han character at the end is a separate word and disables the fast path.
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
def test_words_follow_unicode_annex_29(text: str, expected: list[str]) -> None:
    assert terms(text, "standard") == expected


def test_long_terms_are_split_like_in_lucene() -> None:
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
def test_scripts_without_blanks_become_character_pairs(text: str, expected: list[str]) -> None:
    assert terms(text, "bigrams") == expected


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        *((language, "standard") for language in ("en", "de-AT", "und", "")),
        *((language, "bigrams") for language in ("zh", "ZH-Hant-TW", "ja_JP", "th")),
    ],
)
def test_language_determines_the_analysis(language: str, expected: str) -> None:
    assert analysis_of(language) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_terms_contain_no_blanks(text: str) -> None:
    analyses: tuple[Analysis, ...] = ("standard", "bigrams")
    for analysis in analyses:
        words = terms(text.encode("utf-8", "replace").decode(), analysis)
        assert all(word and not any(letter in " \t\n\r\f\v" for letter in word) for word in words)
