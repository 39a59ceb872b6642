"""Marked spans become texts of their own for the linear model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.unit.linear.test_linear import assert_graph_agrees, odd_texts, write_task
from tlm_core.linear.fit import fit
from tlm_core.linear.ngrams import Alphabet
from tlm_core.linear.params import BaselineParams
from tlm_core.linear.spans import learn_marks, split_spans
from tlm_core.stages import BASELINE
from tlm_core.tasks.task import Task
from tlm_core.training.local import run_stage

WORDS = ["cat", "dog", "fox", "hen"]


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("the [[ cat ]] saw << a dog >> .", ("<<", "[[")),
        ("the <e1>cat</e1> saw <e2>a dog</e2>.", ("<e1>", "<e2>")),
        ("[s]the cat[/s] saw {{a dog}}", ("[s]", "{{")),
        ("the [[ cat ]] saw a dog [1], a << b", ()),
        ("the [[ cat ]] saw [[ a dog ]]", ()),
        ("<b>the</b> [[ cat ]] saw << a dog >>", ()),
        ("]] the [[ cat saw << a dog >>", ()),
    ],
)
def test_two_marks_of_nearly_all_texts_are_learned(text: str, marks: tuple[str, ...]) -> None:
    assert learn_marks([text] * 100) == marks
    assert learn_marks([text] * 95 + ["the cat"] * 5) == marks
    assert learn_marks([text] * 94 + ["the cat"] * 6) == ()


def test_spans_and_the_words_between_them_are_parts() -> None:
    marks = ("<<", "[[")
    assert split_spans("a [[ cat ]] saw the << dog >>", marks) == (" dog ", " cat ", "[[ 2 saw the")
    assert split_spans("a << dog >> [[ cat ]]", marks) == (" dog ", " cat ", "<< 0")
    assert split_spans(f"a << dog >> {'x ' * 12} [[ cat ]]", marks)[2].startswith("<< 10 x x")
    assert split_spans("a [[ cat << dog >> ]]", marks) == (" dog ", " cat << dog >> ", "[[ 0")
    assert split_spans("a [[ cat ]] alone", marks) == ("", "", "")


def write_marked_task(folder: Path) -> Path:
    """Write a task whose label is the first span's word. All words occur in each text."""
    draw, texts, labels = random.Random(0), [], []
    for _ in range(120):
        words = draw.sample(WORDS, 4)
        texts.append(f"{words[0]} [[ {words[1]} ]] and {words[2]} << {words[3]} >>")
        labels.append(WORDS.index(words[1]))
    return write_task(folder, texts, labels, tuple(WORDS))


def test_label_may_depend_on_the_word_within_a_mark(tmp_path: Path) -> None:
    task = Task.read(write_marked_task(tmp_path / "task"))
    model = fit(task).model
    assert model.features.alphabet.marks == ("<<", "[[")
    unseen = ["hen fox [[ cat ]] or << dog >>", "x << cat >> [[ fox ]]"]
    assert model.outputs([(text,) for text in unseen]).argmax(axis=1).tolist() == [0, 2]


def test_graph_and_training_agree_on_marked_and_odd_texts(tmp_path: Path) -> None:
    folder = write_marked_task(tmp_path / "task")
    done = run_stage(BASELINE, {"task": folder}, BaselineParams(), tmp_path / "baseline")
    assert_graph_agrees(done, [*Task.read(folder).texts("test"), *odd_texts(300)])


def test_alphabet_of_pairs_and_plain_texts_has_no_marks() -> None:
    assert Alphabet.learn([("[[ a ]] << b >>", "c")]).marks == ()
    assert len(Alphabet.learn([("a b",)]).words) == 1
