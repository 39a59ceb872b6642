"""From a task to what is asked of the index, and to what must not be found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tlm_core.errors import InvalidRecipe
from tlm_core.selection.analysis import analysis_of, terms
from tlm_core.selection.rake import key_phrases
from tlm_core.tasks.task import Task
from tlm_core.training.recipe import Selection


@dataclass(frozen=True)
class Query:
    """A text to search with and the train rows that it is the text of."""

    text: str
    rows: tuple[int, ...]


def train_texts(task: Task) -> Iterator[tuple[int, str]]:
    """(row, text) of the train split; the two texts of a pair are joined by a blank."""
    texts, pairs = task.texts("train"), task.text_pairs("train")
    joined = texts if pairs is None else [f"{first} {second}" for first, second in zip(texts, pairs, strict=True)]
    return zip(task.rows("train").tolist(), joined, strict=True)


def held_out_texts(task: Task) -> Iterator[tuple[str, int, str]]:
    """(split, row, text) of validation and all tests; the texts of a pair stand alone: a passage may hold only one."""
    for split in ("validation", "test", *task.further_tests):
        rows = task.rows(split).tolist()
        for texts in (task.texts(split), task.text_pairs(split)):
            yield from ((split, row, text) for row, text in zip(rows, texts or (), strict=texts is not None))


def queries_of(texts: Iterable[tuple[int, str]], wording: Callable[[str], str] = str) -> list[Query]:
    """One query for each distinct wording of (row, text), in order of first sight: equal ones are searched once."""
    rows: dict[str, list[int]] = {}
    for row, text in texts:
        rows.setdefault(wording(text), []).append(row)
    return [Query(text, tuple(numbers)) for text, numbers in rows.items()]


def task_queries(task: Task, params: Selection) -> list[Query]:
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

    return queries_of(train_texts(task), wording)
