"""From a task to what is asked of the index, and to what must not be found."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa

from tlm_core.errors import InvalidRecipe
from tlm_core.selection.analysis import analysis_of, terms
from tlm_core.selection.rake import key_phrases
from tlm_core.tasks.task import Task
from tlm_core.training.recipe import Selection

_BATCH = 1024


@dataclass(frozen=True)
class Query:
    """A text to search with and the train rows that it is the text of."""

    text: str
    rows: tuple[int, ...]


class Queries(Sequence[Query]):
    """One query for each distinct wording of a train text, in order of first sight: equal ones are searched once.

    rows: the train rows of each. Only where its text stands is kept of a query, and it is worded anew whenever it is
    asked for: a big task would be held twice.
    """

    def __init__(self, task: Task, wording: Callable[[str], str]) -> None:
        self._table, self._wording = task.splits["train"], wording
        self._first: list[int] = []
        rows: list[list[int]] = []
        seen: dict[bytes, int] = {}
        for number, (row, text) in enumerate(train_texts(task)):
            place = seen.setdefault(hashlib.blake2b(wording(text).encode(), digest_size=16).digest(), len(seen))
            if place == len(rows):
                rows.append([])
                self._first.append(number)
            rows[place].append(row)
        self.rows: list[tuple[int, ...]] = list(map(tuple, rows))

    def picked(self, places: Sequence[int]) -> Queries:
        """The queries at `places`, in that order."""
        found = copy.copy(self)
        found.rows = [self.rows[place] for place in places]
        found._first = [self._first[place] for place in places]
        return found

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, which: int) -> Query: ...

    @overload
    def __getitem__(self, which: slice) -> list[Query]: ...

    def __getitem__(self, which: int | slice) -> Query | list[Query]:
        if isinstance(which, int):
            return self[which : which + 1 or None][0]
        first = np.array(self._first[which], np.int64)
        # Of a slice: taking from a table of many chunks joins them all before.
        low, high = (first.min(), first.max() + 1) if len(first) else (0, 0)
        texts = _joined(self._table.slice(low, high - low).take(pa.array(first - low)))
        return [Query(self._wording(text), rows) for text, rows in zip(texts, self.rows[which], strict=True)]


def train_texts(task: Task) -> Iterator[tuple[int, str]]:
    """(row, text) of the train split; the two texts of a pair are joined by a blank."""
    for batch in task.splits["train"].to_batches(max_chunksize=_BATCH):
        yield from zip(batch["row"].to_pylist(), _joined(batch), strict=True)


def _joined(part: Any) -> list[str]:
    """Texts of a table or of a batch of it."""
    texts: list[str] = part["text"].to_pylist()
    if "text_pair" not in part.schema.names:
        return texts
    return [f"{first} {second}" for first, second in zip(texts, part["text_pair"].to_pylist(), strict=True)]


def held_out_texts(task: Task) -> Iterator[tuple[str, int, str]]:
    """(split, row, text) of validation and all tests; the texts of a pair stand alone: a passage may hold only one."""
    for split in ("validation", "test", *task.further_tests):
        rows = task.rows(split).tolist()
        for texts in (task.texts(split), task.text_pairs(split)):
            yield from ((split, row, text) for row, text in zip(rows, texts or (), strict=texts is not None))


def task_queries(task: Task, params: Selection) -> Queries:
    """The queries of all train rows as `params` word them.

    Raises InvalidRecipe for RAKE in another language than English, whose stop words it needs.
    """
    analysis = analysis_of(task.language)
    if params.query == "rake" and not task.language.lower().startswith("en"):
        raise InvalidRecipe(
            f"selection.query 'rake' knows English only, and the task's language is '{task.language}'; take 'text'"
        )

    def wording(text: str) -> str:
        if params.query == "rake":
            text = " ".join(key_phrases(text)) or text
        # Terms with blanks between them are cut into the same terms again.
        return " ".join(dict.fromkeys(terms(text, analysis))) if params.unique_terms else text

    return Queries(task, wording)
