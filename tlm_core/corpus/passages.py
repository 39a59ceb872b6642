"""Passages: their ids, the division of long texts into passages, and a set of keys."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHORTEST = 25
LONGEST = 250
TARGET = LONGEST // 2

# Scripts without spaces between words: each character counts as a word.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
# Base64 and similar data would be one word of several megabytes. The limit divides such data into words.
_LONGEST_WORD = 40
_MOST_MARKS = 8  # marks of one letter; a border after more marks does not move
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]{{1,{_LONGEST_WORD}}}")
# In Latin script, a point before a lowercase letter does not end a sentence ("e.g. this").
_SENTENCE_END = re.compile(
    r"""(?<![.!?…])[.!?…]+["'”’)\]»]*\s(?![a-z])|[。！？｡．]+["'”’」』）】》]*\s?|[।॥۔؟።။։]+["'”’)\]»]*\s?"""
)
_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n")


class Passage(NamedTuple):
    """One short text of a corpus."""

    id: str
    text: str
    source: str


def passage_id(text: str) -> str:
    """Return the first 32 hex digits of the SHA-256 of the text's NFC form. Equal texts have equal ids everywhere."""
    return hashlib.sha256(unicodedata.normalize("NFC", text).encode()).hexdigest()[:32]


def build_passage(text: str, source: str) -> Passage:
    return Passage(passage_id(text), text, source)


def encodable(text: str) -> str:
    """Return `text` with U+FFFD instead of lone surrogates, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def tidy(text: str) -> str:
    """Return the NFC form of `text` with one space for every run of white space."""
    return unicodedata.normalize("NFC", encodable(" ".join(text.split())))


def word_count(text: str) -> int:
    """Return the number of words. A word has up to 40 characters. In scripts without spaces, a character is a word."""
    if not text.isascii():
        return len(_WORD.findall(text))
    runs = text.split()  # gives the same number several times faster
    if max(map(len, runs), default=0) <= _LONGEST_WORD:
        return len(runs)
    return sum(-(-len(run) // _LONGEST_WORD) for run in runs)


def cut(text: str) -> list[str]:
    """Cut `text` into tidy passages of at most 250 words, at the ends of sentences.

    A sentence of more than 125 words is also cut between words. A text of up to 250 words is one passage, even if it is
    short. The passages of a longer text have more than 25 words. A blank text has no passage. Equal texts have equal
    passages.
    """
    passage = tidy(text)
    if not passage:
        return []
    if word_count(passage) <= LONGEST:
        return [passage]
    return list(cut_stream(_PARAGRAPH_END.split(text)))


def cut_stream(paragraphs: Iterable[str]) -> Iterator[str]:
    """Yield the passages of a text that comes in paragraphs, see `cut`. Memory holds one paragraph and one passage."""
    held: list[str] = []
    sizes: list[int] = []
    for paragraph in paragraphs:
        for unit, size in _units(tidy(paragraph)):
            held.append(unit)
            sizes.append(size)
            if sum(sizes) > LONGEST:
                at = _cutting_point(sizes)
                yield "".join(held[:at]).strip()
                del held[:at], sizes[:at]
    if held:
        yield "".join(held).strip()


def _units(paragraph: str) -> Iterator[tuple[str, int]]:
    """Yield (sentence, word count) for a tidy paragraph. Long sentences come in parts of about TARGET words."""
    if not paragraph:
        return
    paragraph += " "
    ends = [match.end() for match in _SENTENCE_END.finditer(paragraph)]
    for start, end in pairwise((0, *ends, len(paragraph))):
        sentence = paragraph[start:end]
        size = word_count(sentence)
        if size <= TARGET:
            yield sentence, size
            continue
        begins = [match.start() for match in _WORD.finditer(sentence)]
        borders = (_before_marks(sentence, begin) for begin in begins[TARGET::TARGET])
        for left, right in pairwise((0, *borders, len(sentence))):
            yield sentence[left:right], word_count(sentence[left:right])


def _before_marks(text: str, at: int) -> int:
    """If `text[at]` is a mark, return the position of the letter before the mark, else return `at`.

    Thai, Khmer and other scripts write vowels and tones as marks after a letter.
    """
    starts = range(at, at - _MOST_MARKS - 1, -1)
    return next((start for start in starts if unicodedata.category(text[start]) not in ("Mn", "Mc")), at)


def _cutting_point(sizes: list[int]) -> int:
    """Return the number of units of the next passage, which ends at the unit border nearest to TARGET words.

    Each unit has at most about TARGET words, and their sum exceeds LONGEST = 2 TARGET. So the passage has about
    TARGET / 2 to 3/2 TARGET words, and at least TARGET / 2 words remain.
    """
    ends = np.cumsum(sizes)
    return int(np.argmin(np.abs(ends - TARGET))) + 1


class SeenKeys:
    """A growing set of 64-bit keys, which needs eight bytes for each key.

    The keys are leading bits of SHA-256. Among 50 million texts, the probability that any two different texts have the
    same key is below 1 in 10,000.
    """

    def __init__(self) -> None:
        self._levels: list[NDArray[np.uint64]] = []

    def add(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Add `keys` [n]. Return a mask [n]: True for each new key. Of equal new keys, only the first has True."""
        new = np.zeros(len(keys), dtype=np.bool_)
        new[np.unique(keys, return_index=True)[1]] = True
        for level in self._levels:
            new &= level[np.searchsorted(level, keys).clip(max=len(level) - 1)] != keys
        fresh = np.sort(keys[new])
        # Sizes at least double with each level, so each key is merged only a logarithmic number of times.
        while self._levels and len(self._levels[-1]) <= 2 * len(fresh):
            fresh = np.sort(np.concatenate((self._levels.pop(), fresh)), kind="stable")
        if len(fresh):
            self._levels.append(fresh)
        return new


def keys_of(ids: Iterable[str]) -> NDArray[np.uint64]:
    """Return an array [ids] with the leading 64 bits of each id. Each id begins with 16 hexadecimal digits."""
    return np.frombuffer(bytes.fromhex("".join(name[:16] for name in ids)), dtype=">u8").astype(np.uint64)
