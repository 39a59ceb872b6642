from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import shared_data
from tlm_core.corpus.leaks import HALF, PIECE, WHOLE, Leak, LeakFilter, tokens
from tlm_core.corpus.passages import cut

LONG = "one two three four five six seven eight nine ten"


def naive(texts: list[tuple[str, int, str]], passage: str) -> list[tuple[str, int, str]]:
    """The rule as the design states it, written for reading."""

    def words(text: str) -> list[str]:
        return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", text).casefold()).split()

    def runs(listed: list[str], size: int) -> set[str]:
        return {" ".join(listed[i : i + size]) for i in range(len(listed) - size + 1)}

    held = words(passage)
    expected = []
    for split, row, text in texts:
        wanted = words(text)
        if len(wanted) >= 8:
            shared = len(runs(wanted, 8) & runs(held, 8))
            if shared / len(runs(wanted, 8)) >= 0.5:
                expected.append((split, row, HALF))
            elif len(runs(held, 8)) >= 18 and shared / len(runs(held, 8)) >= 0.5:
                expected.append((split, row, PIECE))
        elif len(wanted) >= 5 and " ".join(wanted) in runs(held, len(wanted)):
            expected.append((split, row, WHOLE))
    return expected


def leaks(text: str, passage: str) -> list[Leak]:
    return LeakFilter([("test", 1, text)]).leaks_of(passage)


def test_a_passage_that_holds_the_text_leaks_it() -> None:
    assert leaks(LONG, f"before {LONG} after") == [Leak("test", 1, HALF)]


def test_case_punctuation_and_entity_marks_hide_nothing() -> None:
    marked = "[[ One Two ]] three-four << five >> six, seven_eight! nine (ten)"
    assert leaks(marked, LONG) == leaks(LONG, marked) == [Leak("test", 1, HALF)]
    assert leaks("Die Straße war lang und nass", "die STRASSE war lang und nass") == [Leak("test", 1, WHOLE)]


@pytest.mark.parametrize(
    ("text", "passage"),
    [
        ("die Arbeitnehmer in kleinen Betrieben", "die Arbeit\u00adnehmer in klei\u00adnen Betrie\u00adben"),
        ("one two three four five", "one t\u200bwo th\u2060ree four fi\ufeffve"),
        ("このカメラは10月", "このｶﾒﾗは１０月"),
        ("the ﬁrst x² of Ｍodel™ two", "The first X2 of model two"),
        ("İstanbul İzmir İlçe İnsan İş", "i̇stanbul i̇zmir i̇lçe i̇nsan i̇ş"),
        ("مُحَمَّد في بيت كبير جدا", "محمد في بيت كبير جدا"),
    ],
)
def test_soft_hyphens_marks_and_compatible_characters_hide_nothing(text: str, passage: str) -> None:
    assert leaks(text, passage) and leaks(passage, text)


def test_word_with_marks_is_one_token() -> None:
    assert tokens("सरकार ने नई योजना") == ["सरकर", "न", "नई", "यजन"]
    assert tokens("cafe\u0301") == ["café"]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("这家餐馆的面条很好吃，服务员也非常热情。", "那家旅店的房间十分干净，老板娘做的早饭更是丰盛。"),
        ("この映画はとても面白かったので、また見たいと思います。", "昨日は雨が降って、ずっと家で本を読んでいました。"),
        ("อาหารที่ร้านนี้อร่อยมากและพนักงานบริการดี", "โรงแรมแห่งนั้นสะอาดแต่ห้องพักเล็กเกินไปหน่อย"),
    ],
)
def test_in_scripts_without_blanks_each_character_counts(text: str, other: str) -> None:
    assert leaks(text, f"{other}{text}{other}") == [Leak("test", 1, HALF)]
    assert leaks(text, other + text[: len(text) * 3 // 4]) == [Leak("test", 1, HALF)]
    assert leaks(text, other + text[: len(text) // 3]) == leaks(text, other) == []


def test_short_text_in_a_language_without_blanks_leaks_as_a_whole() -> None:
    assert leaks("味道非常好", "我觉得这里的味道非常好，推荐。") == [Leak("test", 1, WHOLE)]
    assert leaks("味道非常好", "味道好，非常") == []
    assert tokens("iPhone 15的屏幕很好_用") == ["iphone", "15", *"的屏幕很好用"]
    assert tokens("한국어는 띄어 쓴다") == ["한국어는", "띄어", "쓴다"]


def test_half_of_the_8_grams_is_enough_and_less_is_not() -> None:
    text = " ".join(f"w{i}" for i in range(11))  # four 8-grams
    assert leaks(text, " ".join(f"w{i}" for i in range(9))) == [Leak("test", 1, HALF)]
    assert leaks(text, " ".join(f"w{i}" for i in range(8))) == []
    odd = " ".join(f"w{i}" for i in range(12))  # five: two are less than half
    assert leaks(odd, " ".join(f"w{i}" for i in range(9))) == []


def test_grams_are_counted_once_however_often_they_occur() -> None:
    text = "a b c d e f g h " * 3 + "i j k l m n o p q r s t u v w x y z"
    assert leaks(text, "a b c d e f g h " * 30) == naive([("test", 1, text)], "a b c d e f g h " * 30) == []


@pytest.mark.parametrize("size", [5, 6, 7])
def test_a_short_text_leaks_only_as_one_whole_run(size: int) -> None:
    words = LONG.split()[:size]
    assert leaks(" ".join(words), LONG) == [Leak("test", 1, WHOLE)]
    assert leaks(" ".join(words), " ".join([*words[:-1], "x", words[-1]])) == []
    assert leaks(" ".join(words), " ".join(words[:-1])) == []


def test_texts_under_five_tokens_never_leak() -> None:
    assert leaks("one two three four", LONG) == []
    assert LeakFilter([]).leaks_of(LONG) == []


def test_every_leaked_text_is_named_in_the_order_given() -> None:
    leak_filter = LeakFilter([("validation", 7, LONG), ("test", 3, "other words are here now"), ("test", 2, LONG)])
    assert leak_filter.leaks_of(LONG.upper()) == [Leak("validation", 7, HALF), Leak("test", 2, HALF)]


TEXT = st.lists(st.sampled_from(["a", "b", "A_b", "c1", "É,", "d.", "[[", "]]"]), max_size=30).map(" ".join)


@settings(deadline=None, max_examples=200)
@given(st.lists(TEXT, max_size=6), TEXT)
def test_agrees_with_a_naive_reading_of_the_rule(texts: list[str], passage: str) -> None:
    rows = [("test", row, text) for row, text in enumerate(texts, start=1)]
    assert LeakFilter(rows).leaks_of(passage) == naive(rows, passage)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 120), st.integers(0, 60), st.integers(0, 40), st.integers(1, 30))
def test_agrees_with_a_naive_reading_on_pieces(start: int, size: int, others: int, distinct: int) -> None:
    words = sentences(150).split()
    passage = words[start : start + size] + [f"other{number % distinct}" for number in range(others)]
    rows = [("test", 1, " ".join(words)), ("test", 2, " ".join(words[100:]))]
    assert LeakFilter(rows).leaks_of(" ".join(passage)) == naive(rows, " ".join(passage))


def sentences(words: int) -> str:
    """Distinct words in sentences of 20 words."""
    return " ".join(f"w{number}." if number % 20 == 0 else f"w{number}" for number in range(1, words + 1))


@pytest.mark.parametrize("size", [300, 400, 600, 1000])
def test_every_passage_cut_from_a_long_text_leaks_it(size: int) -> None:
    text = sentences(size)
    passages = cut(text)
    assert len(passages) > 1
    assert all(leaks(text, passage) for passage in passages)


def test_passage_that_quotes_a_sentence_of_a_long_text_stays() -> None:
    quoted = " ".join(sentences(400).split()[100:120])
    others = " ".join(f"other{number}" for number in range(60))
    assert leaks(sentences(400), f"{others} {quoted} {others}") == []


def test_half_of_the_8_grams_of_a_passage_is_enough() -> None:
    words = sentences(400).split()
    others = [f"other{number}" for number in range(20)]
    assert leaks(sentences(400), " ".join(words[:27] + others)) == [Leak("test", 1, PIECE)]  # 20 of 40
    assert leaks(sentences(400), " ".join(words[:26] + others)) == []  # 19 of 39


def test_short_passage_within_a_long_text_stays() -> None:
    words = sentences(400).split()
    assert leaks(sentences(400), " ".join(words[:9])) == leaks(sentences(400), " ".join(words[:24])) == []
    assert leaks(sentences(400), " ".join(words[:25])) == [Leak("test", 1, PIECE)]
    assert leaks(" ".join(words[:10] * 9 + words), " ".join(words[:10] * 9)) == []  # only ten distinct 8-grams


@pytest.mark.data
def test_real_passages_with_real_test_texts_are_leaks() -> None:
    import pyarrow.parquet as pq

    data = shared_data()
    texts = _held_out(data / "tasks" / "sciie") + _held_out(data / "tasks" / "acl_arc")
    table = pq.read_table(data / "corpus" / "acl_fulltext-07.parquet", columns=["text"])
    passages = table["text"].to_pylist()[:8000]
    leak_filter = LeakFilter(texts)
    leaking = [passage for passage in passages if leak_filter.leaks_of(passage)]
    assert leaking
    clean = [passage for passage in passages[:60] if passage not in leaking]
    sample = texts[::8]
    for passage in leaking[:10] + clean[:10]:
        mine = [leak for leak in leak_filter.leaks_of(passage) if leak[:2] in {row[:2] for row in sample}]
        assert mine == naive(sample, passage)


def _held_out(task: Path) -> list[tuple[str, int, str]]:
    return [
        (f"{task.name} {split}", row, json.loads(line)["text"])
        for split in ("validation", "test")
        for row, line in enumerate((task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(), start=1)
    ]
