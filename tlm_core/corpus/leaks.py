"""The leak filter: it detects passages that contain validation or test texts."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlm_core.corpus.passages import SHORTEST

GRAM = 8
SHORTEST_TEXT = 5
# The passages of a long text have more than SHORTEST words. A shorter passage can be a phrase that many texts contain.
FEWEST_GRAMS = SHORTEST - GRAM + 1
HALF = "half of its 8-grams"
WHOLE = "whole text"
PIECE = "half of the passage's 8-grams"

# Scripts without spaces: Han, Kana, Bopomofo, Thai, Lao, Burmese, Khmer, Tai, Javanese, Balinese. Each of their
# characters is a token. A run of them would be a whole sentence, which passages rarely repeat.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\u3005-\u3007\u3021-\u3029"
    "\u3040-\u30fa\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua980-\ua9ff\uaa60-\uaadf"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"(?=[^\W_])[{_ALONE}]|[^\W_{_ALONE}]+")
_NEITHER = re.compile(r"[^\w\x00-\x7f]")  # a character outside ASCII that is neither a letter nor a digit


class Leak(NamedTuple):
    """A validation or test text that a passage contains, at least in part. row: number of the text's row in `split`.

    rule: what the passage and the text share: HALF of the text, the WHOLE text, or PIECE, which is half of the passage.
    """

    split: str
    row: int
    rule: str


def tokens(text: str) -> list[str]:
    """Return the tokens of a text: case-folded runs of letters and digits, in the normal form NFKC.

    In scripts without spaces, each letter or digit is a token. Invisible characters, such as soft hyphens, are removed.
    Marks that do not combine with their letter into one character are removed too.
    """
    # The form NFC comes first and again after case folding, because case folding divides İ into i and a mark.
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    for character in set(_NEITHER.findall(text)):
        is_hidden = unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")
        text = text.replace(character, "" if is_hidden else " ")
    # The form NFKC comes last, because it replaces some symbols, such as ™, by letters.
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def grams(words: list[str], size: int = GRAM) -> Iterator[tuple[str, ...]]:
    """Yield every run of `size` adjacent words."""
    return zip(*(islice(words, start, None) for start in range(size)), strict=False)


class LeakFilter:
    """Detects the texts that a passage leaks.

    A passage leaks a text of at least 8 tokens if the passage contains at least half of the text's distinct 8-grams. A
    passage leaks a text of 5 to 7 tokens if the passage contains the whole text. Shorter texts never leak.

    A passage with at least 18 distinct 8-grams also leaks a text that contains at least half of these 8-grams. This
    rule detects the pieces of a text that is longer than a passage.

    texts: (split, row, text) of every validation and test text.
    """

    def __init__(self, texts: Iterable[tuple[str, int, str]]) -> None:
        self._texts: list[tuple[str, int, str]] = []
        self._needed: list[int] = []
        long: list[NDArray[np.int64]] = []
        short: list[NDArray[np.int64]] = []
        for split, row, text in texts:
            words = tokens(text)
            if len(words) < SHORTEST_TEXT:
                continue
            self._texts.append((split, row, text))
            is_long = len(words) >= GRAM
            keys = np.unique(_hashes(words, GRAM)) if is_long else _hashes(words[:SHORTEST_TEXT], SHORTEST_TEXT)
            self._needed.append((len(keys) + 1) // 2)
            long.append(keys if is_long else keys[:0])
            short.append(keys[:0] if is_long else keys)
        self._long, self._short = _Postings(long), _Postings(short)

    def leaks_of(self, passage: str) -> list[Leak]:
        """Return the texts that `passage` leaks, in the order of the filter's `texts`."""
        words = tokens(passage)
        owners = self._long.owners_of(words, GRAM)
        candidates = set(self._short.owners_of(words, SHORTEST_TEXT).tolist())
        enough = math.inf
        if len(owners):
            enough = _half_of(words)
            present, counts = np.unique(owners, return_counts=True)
            candidates.update(
                owner
                for owner, count in zip(present.tolist(), counts.tolist(), strict=True)
                if count >= min(self._needed[owner], enough)
            )
        return [leak for owner in sorted(candidates) if (leak := self._checked(owner, words, enough))]

    def _checked(self, owner: int, words: list[str], enough: float) -> Leak | None:
        """Return the leak of text number `owner`, or None. Words are compared, because hashes can be equal by chance.

        words: tokens of the passage. enough: number of shared 8-grams that suffices for PIECE, see `_half_of`.
        """
        split, row, text = self._texts[owner]
        wanted = tokens(text)
        if len(wanted) < GRAM:
            return Leak(split, row, WHOLE) if tuple(wanted) in set(grams(words, len(wanted))) else None
        parts = set(grams(wanted))
        shared = len(parts.intersection(grams(words)))
        if 2 * shared >= len(parts):
            return Leak(split, row, HALF)
        return Leak(split, row, PIECE) if shared >= enough else None


class _Postings:
    """Maps hashes of n-grams to text numbers. A large test set has millions of n-grams, so the arrays are flat.

    keys: the distinct hashes of the n-grams of each text.
    """

    def __init__(self, keys: list[NDArray[np.int64]]) -> None:
        owners = np.repeat(np.arange(len(keys), dtype=np.int32), [len(part) for part in keys])
        joined = np.concatenate([np.empty(0, dtype=np.int64), *keys])
        order = np.argsort(joined, kind="stable")
        # Because of the appended maximum, the index that a search returns always exists.
        self._keys = np.append(joined[order], np.iinfo(np.int64).max)
        self._owners = owners[order]

    def owners_of(self, words: list[str], size: int) -> NDArray[np.int32]:
        """Return the numbers of texts that share n-grams of `size` words with `words`, once per distinct n-gram."""
        if not len(self._owners) or len(words) < size:
            return self._owners[:0]
        wanted = _hashes(words, size)
        wanted = np.unique(wanted[self._keys[np.searchsorted(self._keys, wanted)] == wanted])
        lefts = np.searchsorted(self._keys[:-1], wanted, side="left")
        rights = np.searchsorted(self._keys[:-1], wanted, side="right")
        slices = [self._owners[left:right] for left, right in zip(lefts, rights, strict=True)]
        return np.concatenate(slices) if slices else self._owners[:0]


def _half_of(words: list[str]) -> float:
    """Return half the number of a passage's distinct 8-grams, or infinity if the number is below FEWEST_GRAMS."""
    count = len(set(grams(words)))
    return count / 2 if count >= FEWEST_GRAMS else math.inf


def _hashes(words: list[str], size: int) -> NDArray[np.int64]:
    return np.fromiter(map(hash, grams(words, size)), dtype=np.int64, count=len(words) - size + 1)
