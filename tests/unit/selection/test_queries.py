"""Queries from train texts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.selection.make import task_of
from tlm_core.errors import InvalidRecipe
from tlm_core.selection.queries import PHRASES, key_phrases, task_queries
from tlm_core.selection.selectors import Selection
from tlm_core.tasks.task import Task


def texts_of(task: Task, params: Selection) -> list[str]:
    queries = task_queries(task, params)
    return queries.texts(0, len(queries.rows))


def test_phrases_end_at_stop_words_and_punctuation_best_first() -> None:
    # Degree over frequency, computed by hand: deep 7/3, networks 7/3, neural 3/1, and so on.
    text = "Deep neural networks are deep. The training of deep networks, and training."
    assert key_phrases(text) == ["deep neural networks", "deep networks", "deep", "training"]


def test_words_of_longer_phrases_score_higher() -> None:
    assert key_phrases("red fox and fox and hen") == ["red fox", "fox", "hen"]


def test_number_of_phrases_is_limited() -> None:
    assert len(key_phrases(" and ".join(f"word{n}" for n in range(50)))) == PHRASES


def test_queries_have_the_normal_form_of_passages() -> None:
    pairs = {"train": ["de\u0301ja\u0300"]}
    assert texts_of(task_of(["e\u0301le\u0300ve"]), Selection()) == ["élève"]
    assert texts_of(task_of(["cafe\u0301"], pairs=pairs), Selection()) == ["café déjà"]


def test_rake_falls_back_to_the_text_without_phrases() -> None:
    task = task_of(["The fox and the red hen!", "to be or not to be"])
    assert texts_of(task, Selection(query="rake")) == ["red hen fox", "to be or not to be"]


def test_rake_rejects_languages_other_than_english() -> None:
    with pytest.raises(InvalidRecipe, match="'de'"):
        task_queries(replace(task_of(["ein Fuchs"]), language="de"), Selection(query="rake"))


def test_unique_terms_merge_queries_that_become_equal() -> None:
    task = task_of(["fox, FOX hen", "Fox hen hen", "don't 3.14"])
    queries = task_queries(task, Selection(unique_terms=True))
    assert queries.texts(0, 2) == ["fox hen", "don't 3.14"] and queries.rows == [(1, 2), (3,)]
    subset = queries.subset([1, 0])
    assert subset.texts(0, 2) == ["don't 3.14", "fox hen"] and subset.rows == [(3,), (1, 2)]
    assert texts_of(task, Selection()) == task.texts("train")


def test_unique_terms_work_for_texts_without_blanks() -> None:
    task = replace(task_of(["语言语言"]), language="zh")
    assert texts_of(task, Selection(unique_terms=True)) == ["语言 言语"]
