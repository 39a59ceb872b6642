"""A slow BM25 from the formula, as reference for the indexes. Its words are [a-z0-9]+."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from tlm_core.corpus.passages import Passage
from tlm_core.selection.index import MAX_TERMS, Hit


def ascii_words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def rounded_length(length: int) -> int:
    """Return a length as in Lucene's one byte: exact below 40, then the four leading bits of the part above 24."""
    over = max(0, length - 24)
    shift = max(0, over.bit_length() - 4)
    return min(length, 24) + (over >> shift << shift)


class NaiveBM25:
    """Scores every passage for every query in double precision."""

    def __init__(self, passages: Sequence[Passage], words: Callable[[str], list[str]] = ascii_words) -> None:
        self._words = words
        self._counts = {passage.id: Counter(words(passage.text)) for passage in passages}
        self._lengths = {name: counts.total() for name, counts in self._counts.items()}
        self._mean = sum(self._lengths.values()) / len(passages)
        self._passages_with = Counter(word for counts in self._counts.values() for word in counts)

    def idf(self, word: str) -> float:
        passages = self._passages_with[word]
        return math.log(1 + (len(self._counts) - passages + 0.5) / (passages + 0.5))

    def search(self, query: str, k: int) -> list[Hit]:
        terms = Counter(word for word in self._words(query) if self._passages_with[word])
        best = sorted(terms, key=lambda word: (-terms[word] * self.idf(word), word))[:MAX_TERMS]
        hits = []
        for name, counts in self._counts.items():
            length = 1 - 0.75 + 0.75 * rounded_length(self._lengths[name]) / self._mean
            score = sum(
                terms[word] * self.idf(word) * counts[word] / (counts[word] + 1.2 * length)
                for word in best
                if word in counts
            )
            if score:
                hits.append(Hit(name, score))
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]
