"""N-grams of words and characters as integers: one encoding for training, prediction and ONNX graphs.

A text becomes one sequence of ids: its words, a 0, and its characters. An ONNX `TfIdfVectorizer` counts the n-grams of
this sequence, so a caller of the graph needs only `Alphabet.encode`. The id 0 separates texts and stands for unknown
words and characters. No feature contains this id.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlm_core.linear.spans import Marks, learn_marks, split_spans

if TYPE_CHECKING:
    import scipy.sparse as sp  # type: ignore[import-untyped, unused-ignore]

Ints = NDArray[np.int64]
Row = tuple[str, ...]  # a text, or the two texts of a pair

FAMILIES = {"words": (1, 2), "characters": (2, 3, 4, 5)}  # family → orders (lengths) of its n-grams
LAST_CHARACTER = (1 << 12) - 1  # ids up to this number stand for characters, larger ids for words
LAST_ORDER = max(order for orders in FAMILIES.values() for order in orders)
_BITS = {"words": 31, "characters": 12}  # bits of each id in the key of an n-gram; an int64 holds 2 * 31 and 5 * 12
# Limit of each family, because an ONNX graph has one dense value for each feature of each text.
FEATURES = 50_000
# The first words of a text often indicate its label. As a separate part, they differ from equal words elsewhere.
START_WORDS = 4
_BATCH = 4_000_000  # ids whose n-grams are counted at once

# Scripts without spaces between words (Thai to Khmer, kana, Han): each character is a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# A run of one bracket, such as the entity mark [[, is one word.
_WORD = re.compile(rf"\[+|\]+|<+|>+|\{{+|\}}+|[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
# A mark, such as a vowel or tone of Thai, belongs to the letter before.
_WORD_AND_BLANKS = re.compile(rf"(?:[{_UNSPACED}](?:(?!\w)[{_UNSPACED}])*|[^\s{_UNSPACED}]+)\s*")


def split_words(text: str) -> list[str]:
    """Return the words, punctuation marks and, in unspaced scripts, characters of a lowercase text."""
    return _WORD.findall(text)


def words_and_blanks(text: str) -> list[str]:
    """Return the words of a text, each with its punctuation and the blanks after it.

    In unspaced scripts, each letter with its marks is a word.
    """
    return _WORD_AND_BLANKS.findall(text)


def _lower(text: str) -> str:
    """Return the text in lowercase and in the form NFC, as the tokenizer of an encoder does."""
    return unicodedata.normalize("NFC", text).lower()


def _parts(texts: Row, start_words: int, marks: Marks) -> Row:
    """Return the texts that become n-grams: the lowercase texts of a row, its first words, and its marked spans."""
    start = (" ".join(split_words(texts[0])[:start_words]),) if start_words else ()
    return (*texts, *start, *split_spans(texts[0], marks)) if marks else (*texts, *start)


@dataclass(frozen=True)
class Alphabet:
    """The ids of words and characters. Each part of a row (texts, first words, marked spans) has ids of its own.

    words: for each part of a row, word → id. characters: for each part of a row, character → id.
    start_words: number of first words of a text that form an extra part; 0: no such part. marks: opening marks of the
    spans that become parts. nfc: whether `encode` converts texts to the normal form NFC.
    """

    words: tuple[dict[str, int], ...]
    characters: tuple[dict[str, int], ...]
    start_words: int = 0
    marks: Marks = ()
    nfc: bool = True

    @classmethod
    def learn(cls, rows: Sequence[Row], start_words: int = 0) -> Alphabet:
        """Return an alphabet of the most frequent characters and all words of the rows."""
        number = count(1).__next__
        rows = [tuple(map(_lower, row)) for row in rows]
        marks = learn_marks(text for (text,) in rows) if len(rows[0]) == 1 else ()
        parts = [_parts(row, start_words, marks) for row in rows]
        texts = [[" ".join(row[part].split()) for row in parts] for part in range(len(parts[0]))]
        limit = LAST_CHARACTER // len(texts)
        characters = []
        for of_part in texts:
            frequent = [c for c, _ in Counter(chain.from_iterable(of_part)).most_common() if c != " "]
            characters.append({character: number() for character in [" ", *frequent][:limit]})
        number = count(LAST_CHARACTER + 1).__next__
        words = (dict.fromkeys(chain.from_iterable(map(split_words, of_part))) for of_part in texts)
        words_of_parts = tuple({word: number() for word in of_part} for of_part in words)
        return cls(words_of_parts, tuple(characters), start_words, marks)

    @property
    def part_names(self) -> list[str]:
        """The name of each part of a row, such as `first words`; empty for whole texts."""
        start = ["first words"] if self.start_words else []
        spans = [f"in {mark}" for mark in self.marks] + ["between the spans"] if self.marks else []
        return [""] * (len(self.words) - len(start) - len(spans)) + start + spans

    @property
    def spaces(self) -> list[int]:
        """The ids of the space, one for each part of a row."""
        return [characters[" "] for characters in self.characters]

    def encode(self, row: Row) -> list[int]:
        """Return the ids of a row: words of each part, then characters of each part, with 0 between them."""
        lower = tuple(map(_lower if self.nfc else str.lower, row))
        texts = _parts(lower, self.start_words, self.marks)
        ids: list[int] = []
        for words, text in zip(self.words, texts, strict=True):
            ids += [words.get(word, 0) for word in split_words(text)]
            ids.append(0)
        for characters, text in zip(self.characters, texts, strict=True):
            spaced = " ".join(["", *text.split(), ""])  # each word between two spaces
            ids += [characters.get(c, 0) for c in spaced] if spaced.strip() else []
            ids.append(0)
        return ids

    def sequences(self, rows: Iterable[Row]) -> Sequences:
        """Return the encoded rows."""
        arrays = [np.array(self.encode(row), np.int64) for row in rows]
        lengths = np.array([0, *map(len, arrays)], np.int64)
        return Sequences(np.concatenate([np.zeros(0, np.int64), *arrays]), lengths.cumsum())

    def only(self, ids: Ints) -> Alphabet:
        """Return a copy that contains only the words with these ids. The copy encodes all other words as 0."""
        numbers = set(ids.tolist())
        words = tuple({word: number for word, number in of_part.items() if number in numbers} for of_part in self.words)
        return replace(self, words=words)


@dataclass(frozen=True)
class Sequences:
    """Encoded rows in one array. ids: [tokens]. offsets: start of each row in `ids`, then the end, [rows + 1]."""

    ids: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def parts(self, tokens: int) -> Iterator[Sequences]:
        """Yield all rows in order, in blocks of whole rows with about `tokens` ids."""
        start = 0
        while start < len(self):
            stop = max(start + 1, int(np.searchsorted(self.offsets, self.offsets[start] + tokens, "right")) - 1)
            begin, end = self.offsets[start], self.offsets[stop]
            yield Sequences(self.ids[begin:end], self.offsets[start : stop + 1] - begin)
            start = stop


def _keys(sequences: Sequences, family: str, order: int, spaces: Sequence[int]) -> tuple[Ints, Ints]:
    """Return the key and the row index of each n-gram of one order. An n-gram of characters stays within one word."""
    ids = sequences.ids
    usable = (ids > LAST_CHARACTER) if family == "words" else (ids > 0) & (ids <= LAST_CHARACTER)
    size = max(0, len(ids) - order + 1)
    keys, valid = np.zeros(size, np.int64), np.ones(size, np.bool_)
    inner = ~np.isin(ids, spaces) if family == "characters" else usable
    for place in range(order):
        keys |= ids[place : place + size] << (_BITS[family] * place)
        valid &= usable[place : place + size]
        if 0 < place < order - 1:
            valid &= inner[place : place + size]
    places = np.flatnonzero(valid)
    # Each row ends with 0, so no n-gram crosses rows.
    return keys[places], np.searchsorted(sequences.offsets, places, "right") - 1


@dataclass(frozen=True)
class Ngrams:
    """The features of one family. The number of a feature is its index in the concatenated `keys`.

    keys: for each order, the sorted integers that stand for its n-grams. spaces: ids of the space.
    """

    family: str
    keys: tuple[Ints, ...]
    spaces: tuple[int, ...]

    @classmethod
    def learn(cls, sequences: Sequences, family: str, spaces: Sequence[int], limit: int = FEATURES) -> Ngrams:
        """Choose up to `limit` n-grams, those in the most rows. In a tie, prefer short n-grams, then small keys."""
        orders = FAMILIES[family]
        by_order = [_row_counts(sequences, family, order, spaces) for order in orders]
        counts = np.concatenate([rows for _, rows in by_order])
        lowest = np.sort(counts)[-limit] if len(counts) > limit else 1
        surplus = int((counts >= lowest).sum()) - limit
        features = []
        for keys, rows in reversed(by_order):  # surplus ties are removed from the longest n-grams first
            chosen = rows >= lowest
            if surplus > 0:
                ties = np.flatnonzero(rows == lowest)[::-1][:surplus]
                chosen[ties] = False
                surplus -= len(ties)
            features.append(keys[chosen])
        return cls(family, tuple(reversed(features)), tuple(spaces))

    def __len__(self) -> int:
        return sum(map(len, self.keys))

    def counts(self, sequences: Sequences) -> sp.csr_matrix:
        """Return how often each feature occurs in each row, [rows, features] float32."""
        import scipy.sparse as sp  # type: ignore[import-untyped, unused-ignore]

        rows, columns, first = [], [], 0
        for order, known in zip(FAMILIES[self.family], self.keys, strict=True):
            keys, places = _keys(sequences, self.family, order, self.spaces)
            if len(known):
                numbers = np.searchsorted(known, keys).clip(max=len(known) - 1)
                match = known[numbers] == keys
                rows.append(places[match])
                columns.append(numbers[match] + first)
            first += len(known)
        if not rows:
            return sp.csr_matrix((len(sequences), len(self)), dtype=np.float32)
        row, column = np.concatenate(rows), np.concatenate(columns)
        occurrences = np.ones(len(row), np.float32)
        return sp.coo_matrix((occurrences, (row, column)), (len(sequences), len(self))).tocsr()

    def pool(self) -> list[Ints]:
        """Return for each order (length) an array [n-grams, order] of the ids in each n-gram, in feature order."""
        mask = (1 << _BITS[self.family]) - 1
        return [
            np.stack([(keys >> (_BITS[self.family] * place)) & mask for place in range(order)], axis=1)
            for order, keys in zip(FAMILIES[self.family], self.keys, strict=True)
        ]


def _row_counts(sequences: Sequences, family: str, order: int, spaces: Sequence[int]) -> tuple[Ints, Ints]:
    """Return the sorted distinct keys of n-grams of one order, and the number of rows in which each key occurs."""
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for part in sequences.parts(_BATCH):
        in_part, rows = _keys(part, family, order, spaces)
        order_of = np.lexsort((rows, in_part))
        in_part, rows = in_part[order_of], rows[order_of]
        first = np.ones(len(in_part), np.bool_)
        first[1:] = (np.diff(in_part) != 0) | (np.diff(rows) != 0)
        new, new_counts = np.unique(in_part[first], return_counts=True)
        merged, inverse = np.unique(np.concatenate([keys, new]), return_inverse=True)
        counts = np.bincount(inverse, np.concatenate([counts, new_counts])).astype(np.int64)
        keys = merged
    return keys, counts
