"""A fake index: the score of a passage is the number of words that it shares with the query."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from tlm_core.corpus.passages import Passage
from tlm_core.selection.index import Hit, ranked


class WordCountIndex:
    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = {passage.id: passage for passage in passages}
        self.searched: list[list[str]] = []

    def add(self, batch: Sequence[Passage]) -> None:
        self._passages.update({passage.id: passage for passage in batch})

    def commit(self, expected: int | None = None) -> None:
        assert expected in (None, len(self._passages))

    def count(self) -> int:
        return len(self._passages)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.searched.append(list(queries))
        return [ranked(self._hits(set(query.split())), k) for query in queries]

    def _hits(self, words: set[str]) -> list[Hit]:
        shared = {name: len(words & set(passage.text.split())) for name, passage in self._passages.items()}
        return [Hit(name, float(count)) for name, count in shared.items() if count]

    def fetch(self, ids: Collection[str]) -> dict[str, Passage]:
        return {name: self._passages[name] for name in ids}

    def ids(self) -> Iterator[list[str]]:
        yield list(self._passages)

    def close(self) -> None:
        return
