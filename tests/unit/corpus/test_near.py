"""Near duplicates: which are dropped, that the first one stays, and that signatures are on disk."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support import passages_in, skip_or_fail
from tlm_core.corpus import near
from tlm_core.corpus.leaks import grams, tokens
from tlm_core.corpus.near import NearDuplicates
from tlm_core.corpus.passages import build_passage
from tlm_core.corpus.read import INFO, CorpusInfo, write_corpus
from tlm_core.errors import MissingDependency

WORDS = [f"word{n}" for n in range(3000)]


@pytest.fixture
def finder(tmp_path: Path) -> NearDuplicates:
    folder = tmp_path / "near"
    folder.mkdir()
    try:
        return NearDuplicates(folder, clock=ticking())
    except MissingDependency as error:
        skip_or_fail(str(error))


def ticking() -> Callable[[], float]:
    """A clock that goes on by a second at each look."""
    seconds = itertools.count()
    return lambda: float(next(seconds))


def text(draw: random.Random, length: int = 80) -> str:
    return " ".join(draw.choices(WORDS, k=length))


def changed(original: str, draw: random.Random, words: int) -> str:
    parts = original.split()
    for place in draw.sample(range(len(parts)), words):
        parts[place] = f"new{draw.random()}"
    return " ".join(parts)


def jaccard(text: str, other: str) -> float:
    first, second = (set(grams(tokens(t), 3)) for t in (text, other))
    return len(first & second) / len(first | second)


def test_case_marks_and_a_changed_word_make_no_new_passage(finder: NearDuplicates) -> None:
    draw = random.Random(1)
    original = text(draw)
    others = [original.upper(), original.replace(" ", ", ") + "!", changed(original, draw, 1)]
    assert finder.select_new([original, *others]).tolist() == [True, False, False, False]
    assert finder.select_new([others[2], text(draw)]).tolist() == [False, True]
    assert finder.dropped == 4 and finder.seconds == 2.0


def test_passages_that_share_half_their_words_are_different(finder: NearDuplicates) -> None:
    draw = random.Random(2)
    originals = [text(draw) for _ in range(100)]
    halves = [" ".join([*t.split()[:40], *text(draw, 40).split()]) for t in originals]
    assert finder.select_new(originals).all() and finder.select_new(halves).all()


def test_the_estimate_follows_the_jaccard_index_of_word_triples(finder: NearDuplicates) -> None:
    draw = random.Random(3)
    originals = [text(draw) for _ in range(200)]
    finder.select_new(originals)
    for words, lowest, highest in ((1, 0.9, 1.0), (6, 0.0, 0.2)):
        others = [changed(t, draw, words) for t in originals]
        dropped_share = 1 - finder.select_new(others).mean()
        mean = np.mean([jaccard(*pair) for pair in zip(originals, others, strict=True)])
        assert lowest <= dropped_share <= highest, (words, mean, dropped_share)


def test_short_and_wordless_texts_are_compared_whole(finder: NearDuplicates) -> None:
    is_new = finder.select_new(["one", "two words", "One!", "two words", "…", "!!", "…", ""])
    assert is_new.tolist() == [True, True, False, False, True, True, False, True]


def test_many_copies_of_one_text_leave_one(finder: NearDuplicates) -> None:
    original = text(random.Random(4))
    assert finder.select_new([f"{original} {n}" for n in range(3000)]).sum() == 1


def test_near_duplicates_in_files_are_detected(finder: NearDuplicates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_RUN", 500)
    draw = random.Random(5)
    originals = [text(draw) for _ in range(100)]
    for start in range(0, 100, 20):
        assert finder.select_new(originals[start : start + 20]).all()
    assert len(list(finder._folder.glob("keys-*.npy"))) == 2
    assert not finder.select_new([changed(t, draw, 1) for t in originals]).any()


@pytest.mark.parametrize("torn", [0, 7])
def test_search_continues_after_the_last_batch_of_a_killed_process(
    finder: NearDuplicates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: int
) -> None:
    monkeypatch.setattr(near, "_AT_ONCE", 20)
    monkeypatch.setattr(near, "_RUN", 500)
    draw = random.Random(7)
    originals = [text(draw) for _ in range(60)]
    texts = [t for original in originals for t in (original, changed(original, draw, 1))]
    complete = NearDuplicates(tmp_path / "complete")
    expected = complete.select_new(texts)
    finder.select_new(texts[:80])
    for path, size in ((finder._signature_file, 512 * torn), (finder._answer_file, torn)):
        with path.open("ab") as handle:
            handle.write(bytes(size))  # of a batch that the process did not finish
    searched = list[str]()
    monkeypatch.setattr(near, "tokens", lambda text: searched.append(text) or tokens(text))
    resumed = NearDuplicates(finder._folder)
    is_new = np.concatenate([resumed.select_new(texts[:100]), resumed.select_new(texts[100:])])
    assert searched == texts[80:]
    assert (is_new == expected).all() and expected.sum() == 60
    assert resumed.dropped == complete.dropped
    assert resumed._signature_file.read_bytes() == complete._signature_file.read_bytes()


def test_a_corpus_without_near_duplicates_counts_them_and_has_its_own_version(
    tmp_path: Path, finder: NearDuplicates
) -> None:
    draw = random.Random(6)
    originals = [text(draw) for _ in range(50)]
    passages = [build_passage(t, "s") for t in [*originals, *(changed(t, draw, 1) for t in originals), originals[0]]]
    with_all = write_corpus(passages, tmp_path / "a")
    without = write_corpus(passages, tmp_path / "b", near=finder)
    assert (with_all.count, with_all.near_duplicates_dropped) == (100, None)
    assert (without.count, without.near_duplicates_dropped, without.duplicates_dropped) == (50, 50, 1)
    assert with_all.version != without.version
    assert CorpusInfo.model_validate_json((tmp_path / "b" / INFO).read_bytes()) == without
    assert [passage.text for passage in passages_in(tmp_path / "b")] == originals


def test_missing_library_error_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(MissingDependency, match="rensa"):
        NearDuplicates(tmp_path)
