"""How train texts become queries."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.selection.make import task_of
from tlm_core.errors import InvalidRecipe
from tlm_core.selection.queries import Query, task_queries
from tlm_core.selection.rake import PHRASES, key_phrases
from tlm_core.training.recipe import Selection


def test_phrases_lie_between_stop_words_and_punctuation_best_first() -> None:
    # Degree over frequency: deep 7/3, networks 7/3, neural 3/1 and so on; worked out by hand.
    text = "Deep neural networks are deep. The training of deep networks, and training."
    assert key_phrases(text) == ["deep neural networks", "deep networks", "deep", "training"]


def test_a_word_alone_counts_less_than_in_company() -> None:
    assert key_phrases("red fox and fox and hen") == ["red fox", "fox", "hen"]


def test_no_more_phrases_than_the_release_takes() -> None:
    assert len(key_phrases(" and ".join(f"word{n}" for n in range(50)))) == PHRASES


def test_rake_asks_with_the_phrases_and_with_the_text_where_there_are_none() -> None:
    found = task_queries(task_of(["The fox and the red hen!", "to be or not to be"]), Selection(query="rake"))
    assert [query.text for query in found] == ["red hen fox", "to be or not to be"]


def test_rake_is_refused_for_a_language_whose_stop_words_it_does_not_know() -> None:
    with pytest.raises(InvalidRecipe, match="'de'"):
        task_queries(replace(task_of(["ein Fuchs"]), language="de"), Selection(query="rake"))


def test_unique_terms_ask_with_every_word_once_and_join_what_is_then_equal() -> None:
    task = task_of(["fox, FOX hen", "Fox hen hen", "don't 3.14"])
    found = task_queries(task, Selection(unique_terms=True))
    assert list(found) == [Query("fox hen", (1, 2)), Query("don't 3.14", (3,))]
    assert found.rows == [(1, 2), (3,)]
    assert list(found.picked([1, 0])) == [found[1], found[-2]]
    assert [query.text for query in task_queries(task, Selection())] == task.texts("train")


def test_unique_terms_hold_for_texts_without_blanks() -> None:
    task = replace(task_of(["语言语言"]), language="zh")
    assert task_queries(task, Selection(unique_terms=True))[0].text == "语言 言语"
