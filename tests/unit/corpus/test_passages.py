from __future__ import annotations

import hashlib
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tlm_core.corpus.passages import (
    LONGEST,
    SHORTEST,
    SeenKeys,
    build_passage,
    cut,
    cut_stream,
    keys_of,
    passage_id,
    tidy,
    word_count,
)

WORDS = st.text(alphabet="abcdE.é!?中文。 \n\tไทย", max_size=2000)


def prose(words: int, sentence: int = 11) -> str:
    return " ".join(f"W{i}." if i % sentence == sentence - 1 else f"W{i}" for i in range(words))


def test_an_id_is_the_hash_of_the_nfc_form() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert passage_id(decomposed) == passage_id(composed) == hashlib.sha256(composed.encode()).hexdigest()[:32]
    assert build_passage("a b", "s") == (passage_id("a b"), "a b", "s")


def test_text_of_250_words_stays_whole_with_collapsed_white_space() -> None:
    assert cut(" One\t two.\r\n\n Three\u00a0four ") == ["One two. Three four"]
    assert cut(prose(LONGEST)) == [prose(LONGEST)]
    assert cut(" \n ") == []


def test_long_text_is_cut_at_sentence_ends_into_passages() -> None:
    pieces = cut(prose(3000))
    assert all(SHORTEST < word_count(piece) <= LONGEST and piece.endswith(".") for piece in pieces[:-1])
    assert SHORTEST < word_count(pieces[-1]) <= LONGEST
    assert len(pieces) == 24


def test_no_sentence_ends_before_a_small_letter_nor_inside_a_number() -> None:
    text = " ".join(["alpha beta e.g. gamma 3.5 delta"] * 60)
    borders = [piece[:5] for piece in cut(text)]
    assert "gamma" not in borders and "5 del" not in borders


def test_a_paragraph_end_is_a_place_to_cut() -> None:
    item = "\n\n".join(" ".join(f"p{i}w{k}" for k in range(40)) for i in range(10))
    assert all(piece.split()[0].endswith("w0") for piece in cut(item))


@pytest.mark.parametrize("unit", ["語言模型。", "ประโยคภาษาไทย", "日本語の文です！"])
def test_scripts_without_blanks_are_counted_by_characters(unit: str) -> None:
    text = unit * 200
    pieces = cut(text)
    assert len(pieces) > 3
    assert "".join(pieces) == text
    assert all(SHORTEST < len(piece) <= LONGEST * 1.5 for piece in pieces)


@pytest.mark.parametrize("unit", ["ที่นี่เป็นภาษาไทย", "ភាសាខ្មែរ", "မြန်မာဘာသာ"])
def test_no_passage_begins_with_a_mark_of_the_letter_before(unit: str) -> None:
    pieces = cut(unit * 200)
    assert "".join(pieces) == unit * 200
    assert not any(unicodedata.category(piece[0]).startswith("M") for piece in pieces)


def test_chinese_sentences_stay_whole() -> None:
    assert all(piece.endswith("。") for piece in cut("今天我们研究语言模型。" * 100))


def test_a_run_without_any_blank_cannot_become_a_giant_passage() -> None:
    pieces = cut("x" * 100_000)
    assert "".join(pieces) == "x" * 100_000
    assert max(map(len, pieces)) <= 40 * LONGEST


@pytest.mark.timeout(20)
@pytest.mark.parametrize("run", ["." * 1_000_000 + "x ", ". " * 300_000, "(" * 1_000_000 + "! "])
def test_odd_runs_of_punctuation_take_no_more_than_linear_time(run: str) -> None:
    assert "".join("".join(cut(run * 2)).split()) == "".join((run * 2).split())


def test_lone_surrogates_are_replaced_so_that_every_passage_can_be_stored() -> None:
    assert tidy("a \ud800 b \U0001f600") == "a \ufffd b \U0001f600"


@settings(deadline=None, max_examples=60)
@given(WORDS)
@example(prose(2000) + "中文。" * 300 + " é" * 400 + "y" * 20_000)
def test_cutting_loses_and_changes_nothing(text: str) -> None:
    pieces = cut(text)
    assert "".join("".join(pieces).split()) == "".join(unicodedata.normalize("NFC", text).split())
    assert pieces == cut(text) == [part for piece in pieces for part in cut(piece)]
    assert len(pieces) == 1 or all(SHORTEST < word_count(piece) <= LONGEST for piece in pieces)


@settings(deadline=None, max_examples=60)
@given(st.text(alphabet="ab \n中", max_size=300))
def test_the_short_cut_for_ascii_counts_the_same_words(text: str) -> None:
    ascii_only = text.replace("中", "c" * 90)
    assert word_count(ascii_only) == word_count(ascii_only + " é") - 1


def test_a_stream_of_paragraphs_is_cut_before_it_ends() -> None:
    def endless() -> object:
        while True:
            yield prose(60)

    stream = cut_stream(endless())  # type: ignore[arg-type]
    assert [SHORTEST < word_count(next(stream)) <= LONGEST for _ in range(5)] == [True] * 5


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=12))
def test_seen_keys_agree_with_a_set(batches: list[list[int]]) -> None:
    keys, known = SeenKeys(), set()
    for batch in batches:
        new = keys.add(np.array(batch, dtype=np.uint64))
        for value, fresh in zip(batch, new.tolist(), strict=True):
            assert fresh == (value not in known)
            known.add(value)


def test_keys_are_the_leading_bits_of_the_id() -> None:
    assert keys_of(["0123456789abcdef" + "f" * 16]).tolist() == [0x0123456789ABCDEF]
    assert keys_of([]).tolist() == []
