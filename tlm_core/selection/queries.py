"""Queries from train texts or their key phrases (RAKE), and the validation and test texts for the leak filter."""

from __future__ import annotations

import copy
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from tlm_core.corpus.passages import tidy
from tlm_core.selection.selectors import Selection
from tlm_core.selection.stop_words import STOP_WORDS
from tlm_core.selection.text_analysis import analysis_of, check_query, terms
from tlm_core.tasks.task import Task

PHRASES = 20
_BATCH = 1024
_PIECE = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\s\w]")


class Queries:
    """The distinct queries of the train texts, in order of first occurrence. to_query: train text → text of its query.

    rows: for each query, the numbers of the train rows with this query.
    """

    def __init__(self, task: Task, to_query: Callable[[str], str]) -> None:
        self._table, self._to_query = task.splits["train"], to_query
        self._first: list[int] = []
        rows: list[list[int]] = []
        seen: dict[bytes, int] = {}
        for number, (row, text) in enumerate(train_texts(task)):
            query = seen.setdefault(hashlib.blake2b(to_query(text).encode(), digest_size=16).digest(), len(seen))
            if query == len(rows):
                rows.append([])
                self._first.append(number)
            rows[query].append(row)
        self.rows: list[tuple[int, ...]] = list(map(tuple, rows))

    def subset(self, numbers: Sequence[int]) -> Queries:
        """Return the queries at the indices `numbers`, in the order of `numbers`."""
        subset = copy.copy(self)
        subset.rows = [self.rows[number] for number in numbers]
        subset._first = [self._first[number] for number in numbers]
        return subset

    def texts(self, start: int, stop: int) -> list[str]:
        """Return the texts of the queries `start` to `stop` - 1 (at least one).

        Each call computes the texts again, because memory may have no room for a second copy of the task.
        """
        first = np.array(self._first[start:stop], np.int64)
        # `take` joins all chunks of its table before it selects rows. So it gets only a slice of the table.
        low, high = first.min(), first.max() + 1
        return [
            self._to_query(text) for text in _joined(self._table.slice(low, high - low).take(pa.array(first - low)))
        ]


def train_texts(task: Task) -> Iterator[tuple[int, str]]:
    """Yield (row number, text) of the train split. Texts are tidy like passages. A space joins the texts of a pair."""
    for batch in task.splits["train"].to_batches(max_chunksize=_BATCH):
        yield from zip(batch["row"].to_pylist(), _joined(batch), strict=True)


def _joined(batch: pa.Table | pa.RecordBatch) -> list[str]:
    texts: list[str] = batch["text"].to_pylist()
    if "text_pair" in batch.schema.names:
        texts = list(map(" ".join, zip(texts, batch["text_pair"].to_pylist(), strict=True)))
    return [tidy(text) for text in texts]


def held_out_texts(task: Task) -> Iterator[tuple[str, int, str]]:
    """Yield (split, row number, text) of validation and all test sets. The texts of a pair are separate items."""
    for split in ("validation", "test", *task.further_tests):
        rows = task.rows(split).tolist()
        for texts in (task.texts(split), task.text_pairs(split)):
            yield from ((split, row, text) for row, text in zip(rows, texts or (), strict=texts is not None))


def task_queries(task: Task, params: Selection) -> Queries:
    """Return the queries of all train rows, by `params.query` and `params.unique_terms`. Raises InvalidRecipe."""
    analysis = analysis_of(task.language)
    check_query(params.query, task.language)

    def to_query(text: str) -> str:
        if params.query == "rake":
            text = " ".join(key_phrases(text)) or text
        # The search splits the joined terms into the same terms again.
        return " ".join(dict.fromkeys(terms(text, analysis))) if params.unique_terms else text

    return Queries(task, to_query)


def key_phrases(text: str) -> list[str]:
    """Return the PHRASES best phrases of an English text, best first, in lower case.

    RAKE (Rose, Engel, Cramer and Cowley 2010), as in the TLM release. A phrase is a run of words between stop words
    and punctuation. The degree of a word is the number of words in all phrases that contain this word. The score of a
    word is its degree divided by its frequency. The score of a phrase is the sum over its words. Ties are sorted by
    alphabet.
    """
    phrases = Counter(_phrases(text))
    frequency: Counter[str] = Counter()
    degree: Counter[str] = Counter()
    for phrase, count in phrases.items():
        for word in phrase:
            frequency[word] += count
            degree[word] += count * len(phrase)
    scores = {phrase: sum(degree[word] / frequency[word] for word in phrase) for phrase in phrases}
    return [" ".join(phrase) for phrase in sorted(scores, key=lambda phrase: (-scores[phrase], phrase))[:PHRASES]]


def _phrases(text: str) -> Iterator[tuple[str, ...]]:
    phrase: list[str] = []
    for piece in _PIECE.findall(text.lower()):
        if piece not in STOP_WORDS and piece[0].isalnum():
            phrase.append(piece)
        elif phrase:
            yield tuple(phrase)
            phrase = []
    if phrase:
        yield tuple(phrase)
