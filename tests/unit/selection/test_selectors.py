"""Selectors that look at every passage: the controls, importance resampling, the classifier."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.selection.fake_index import WordCountIndex
from tests.unit.selection.make import index_of, rows, run, task_of
from tlm_core.corpus.passages import Passage
from tlm_core.errors import EmptySelection
from tlm_core.selection import draw
from tlm_core.selection.draw import best_first, shuffled
from tlm_core.selection.select import Corpus, select
from tlm_core.training.recipe import Selection

LEAK = "one two three four five six seven eight nine"
SEA = ["wave", "ship", "harbour", "sail", "tide", "anchor"]
HILL = ["peak", "slope", "rock", "summit", "ridge", "valley"]


def mixed(count: int, seed: int = 3) -> WordCountIndex:
    """Passages about the sea (ids with s) and about hills (h), half and half, in any order."""
    draws = random.Random(seed)
    made = [
        Passage(f"{'s' if n % 2 else 'h'}{n:04d}", " ".join(draws.choices(SEA if n % 2 else HILL, k=12)), "x")
        for n in range(count)
    ]
    return WordCountIndex(draws.sample(made, count))


def names(folder: Path) -> list[str]:
    return [row["id"] for row in rows(folder, "passages")]


def test_whole_takes_every_passage_but_leaks_in_an_order_of_its_seed(tmp_path: Path) -> None:
    index, task = index_of(LEAK, *(f"other {n}" for n in range(30))), task_of(["zebra"], held_out=[LEAK])
    facts = run(task, index, tmp_path / "a", selector="whole", seed=1)
    assert sorted(names(tmp_path / "a")) == sorted(f"p{n}" for n in range(1, 31))
    assert facts["leaks"]["passages"] == 1 and facts["ranks"] is None and index.searched == []
    run(task, index, tmp_path / "b", selector="whole", seed=2)
    assert names(tmp_path / "a") != names(tmp_path / "b")
    run(task, index, tmp_path / "c", selector="whole", seed=1, max_passages=7)
    assert names(tmp_path / "c") == names(tmp_path / "a")[:7]


def test_a_budget_in_words_is_never_overdrawn(tmp_path: Path) -> None:
    index = index_of(*(" ".join(["w"] * (3 + n % 5)) for n in range(40)))
    facts = run(task_of(["w"]), index, tmp_path, selector="random", max_tokens=50)
    found = rows(tmp_path, "passages")
    assert facts["words"] == sum(len(row["text"].split()) for row in found)
    assert 43 < facts["words"] <= 50


def test_a_passage_longer_than_the_budget_is_told(tmp_path: Path) -> None:
    with pytest.raises(EmptySelection, match="max_tokens"):
        run(task_of(["w"]), index_of("w w w w"), tmp_path, max_tokens=3)


@pytest.mark.parametrize("selector", ["dsir", "classifier"])
def test_passages_like_the_task_come_first_whatever_the_order_of_the_corpus(tmp_path: Path, selector: str) -> None:
    task = task_of([" ".join(random.Random(n).sample(SEA, 4)) for n in range(20)])
    params: dict[str, Any] = {"selector": selector, "max_passages": 60}
    facts = run(task, mixed(200, seed=1), tmp_path / "a", **params)
    found = names(tmp_path / "a")
    # The classifier's examples are drawn at random and may take in a few of the sea for "others".
    assert facts["passages"] == 60 and sum(name.startswith("s") for name in found) >= 58
    scores = [row["score"] for row in rows(tmp_path / "a", "passages")]
    assert scores == sorted(scores, reverse=True)
    run(task, mixed(200, seed=1), tmp_path / "b", **params)
    assert (tmp_path / "b" / "passages.parquet").read_bytes() == (tmp_path / "a" / "passages.parquet").read_bytes()


def test_importance_does_not_depend_on_the_order_of_the_passages(tmp_path: Path) -> None:
    task, passages = task_of(["wave ship"]), [Passage(f"p{n}", f"wave w{n % 9} w{n}", "x") for n in range(100)]
    for name, order in (("a", passages), ("b", passages[::-1])):
        corpus = Corpus("docs", "v1", WordCountIndex(order))
        params = Selection(selector="dsir", max_passages=30)
        select(task, corpus, params, tmp_path / name, seed=4, parts=tmp_path / "work")
    assert names(tmp_path / "a") == names(tmp_path / "b")


def test_importance_is_resampled_by_seed(tmp_path: Path) -> None:
    drawn = []
    for seed in range(3):
        index = index_of(*(f"wave ship {n % 3}" for n in range(60)))
        run(task_of(["wave ship"]), index, tmp_path / str(seed), selector="dsir", max_passages=20, seed=seed)
        drawn.append(tuple(names(tmp_path / str(seed))))
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("selector", ["dsir", "classifier"])
def test_without_a_budget_as_many_are_taken_as_the_queries_would_bring(tmp_path: Path, selector: str) -> None:
    index = index_of("wave ship", "wave", *(f"other {n}" for n in range(20)))
    assert run(task_of(["wave"]), index, tmp_path, selector=selector)["passages"] == 2


def test_a_classifier_needs_something_to_tell_from(tmp_path: Path) -> None:
    with pytest.raises(EmptySelection, match="every passage"):
        run(task_of(["wave"]), index_of("wave", "wave ship"), tmp_path / "a", selector="classifier", max_passages=1)
    with pytest.raises(EmptySelection, match="nothing"):
        run(task_of(["zebra"]), index_of("wave"), tmp_path / "b", selector="classifier", max_passages=1)


def test_a_draw_of_any_size_gives_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(*map(str, range(500)))
    whole = [one.id for one in best_first(shuffled(index, 5), 500, scored=False)]
    assert sorted(whole) == sorted(f"p{n}" for n in range(500))
    assert [one.id for one in best_first(shuffled(index, 5), 3, scored=False)] == whole
    monkeypatch.setattr(draw, "_MOST", 64)
    several = list(best_first(shuffled(index, 5), 500, scored=False))
    assert [one.id for one in several] == whole and [one.place for one in several] == list(range(500))


def test_progress_of_a_pass_counts_passages(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    params = Selection(selector="dsir", max_passages=5)
    corpus = Corpus("docs", "v1", index_of("wave", "ship"))
    select(
        task_of(["wave"]), corpus, params, tmp_path, seed=0, parts=tmp_path / "w", progress=lambda *t: seen.append(t)
    )
    assert set(seen) == {(2, 2, "passages")}
