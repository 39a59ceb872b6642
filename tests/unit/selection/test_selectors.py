"""Selectors that score every passage: the controls, importance resampling, the classifier."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.selection.fake_index import WordCountIndex
from tests.unit.selection.make import ids, index_of, rows, run, task_of
from tlm_core.corpus.passages import Passage
from tlm_core.errors import EmptySelection
from tlm_core.selection import sampling
from tlm_core.selection.interface import Corpus
from tlm_core.selection.sampling import random_order, rank_by_score
from tlm_core.selection.select import select
from tlm_core.selection.selectors import Selection

LEAK = "one two three four five six seven eight nine"
SEA = ["wave", "ship", "harbor", "sail", "tide", "anchor"]
HILL = ["peak", "slope", "rock", "summit", "ridge", "valley"]


def mixed(count: int, seed: int = 3) -> WordCountIndex:
    """Passages about the sea (ids with s) and about hills (ids with h), half of each, in random order."""
    rng = random.Random(seed)
    passages = [
        Passage(f"{'s' if n % 2 else 'h'}{n:04d}", " ".join(rng.choices(SEA if n % 2 else HILL, k=12)), "x")
        for n in range(count)
    ]
    return WordCountIndex(rng.sample(passages, count))


def test_whole_selects_all_but_leaks_in_seeded_order(tmp_path: Path) -> None:
    index, task = index_of(LEAK, *(f"other {n}" for n in range(30))), task_of(["zebra"], held_out=[LEAK])
    facts = run(task, index, tmp_path / "a", selector="whole", seed=1)
    assert sorted(ids(tmp_path / "a")) == sorted(f"p{n}" for n in range(1, 31))
    assert facts["leaks"]["passages"] == 1 and facts["ranks"] is None and index.searched == []
    run(task, index, tmp_path / "b", selector="whole", seed=2)
    assert ids(tmp_path / "a") != ids(tmp_path / "b")
    run(task, index, tmp_path / "c", selector="whole", seed=1, max_passages=7)
    assert ids(tmp_path / "c") == ids(tmp_path / "a")[:7]


def test_word_budget_is_never_exceeded(tmp_path: Path) -> None:
    index = index_of(*(" ".join(["w"] * (3 + n % 5)) for n in range(40)))
    facts = run(task_of(["w"]), index, tmp_path, selector="random", max_tokens=50)
    texts = [row["text"] for row in rows(tmp_path, "passages")]
    assert facts["words"] == sum(len(text.split()) for text in texts)
    assert 43 < facts["words"] <= 50


def test_first_passage_longer_than_the_budget_fails(tmp_path: Path) -> None:
    with pytest.raises(EmptySelection, match="max_tokens"):
        run(task_of(["w"]), index_of("w w w w"), tmp_path, max_tokens=3)


@pytest.mark.parametrize("selector", ["dsir", "classifier"])
def test_passages_like_the_task_are_selected_first(tmp_path: Path, selector: str) -> None:
    task = task_of([" ".join(random.Random(n).sample(SEA, 4)) for n in range(20)])
    params: dict[str, Any] = {"selector": selector, "max_passages": 60}
    facts = run(task, mixed(200, seed=1), tmp_path / "a", **params)
    # The random counterexamples of the classifier may include a few passages about the sea.
    assert facts["passages"] == 60 and sum(name.startswith("s") for name in ids(tmp_path / "a")) >= 58
    scores = [row["score"] for row in rows(tmp_path / "a", "passages")]
    assert scores == sorted(scores, reverse=True)
    run(task, mixed(200, seed=1), tmp_path / "b", **params)
    assert (tmp_path / "b" / "passages.parquet").read_bytes() == (tmp_path / "a" / "passages.parquet").read_bytes()


def test_importance_ignores_the_order_of_the_corpus(tmp_path: Path) -> None:
    task, passages = task_of(["wave ship"]), [Passage(f"p{n}", f"wave w{n % 9} w{n}", "x") for n in range(100)]
    for name, order in (("a", passages), ("b", passages[::-1])):
        corpus = Corpus("docs", "v1", WordCountIndex(order))
        params = Selection(selector="dsir", max_passages=30)
        select(task, corpus, params, tmp_path / name, seed=4, scratch=tmp_path / "work")
    assert ids(tmp_path / "a") == ids(tmp_path / "b")


def test_importance_sample_depends_on_the_seed(tmp_path: Path) -> None:
    samples = []
    for seed in range(3):
        index = index_of(*(f"wave ship {n % 3}" for n in range(60)))
        run(task_of(["wave ship"]), index, tmp_path / str(seed), selector="dsir", max_passages=20, seed=seed)
        samples.append(tuple(ids(tmp_path / str(seed))))
    assert len(set(samples)) == 3


@pytest.mark.parametrize("selector", ["dsir", "classifier"])
def test_selection_without_budget_has_the_size_of_the_query_hits(tmp_path: Path, selector: str) -> None:
    index = index_of("wave ship", "wave", *(f"other {n}" for n in range(20)))
    assert run(task_of(["wave"]), index, tmp_path, selector=selector)["passages"] == 2


def test_classifier_needs_positive_and_negative_examples(tmp_path: Path) -> None:
    with pytest.raises(EmptySelection, match="every passage"):
        run(task_of(["wave"]), index_of("wave", "wave ship"), tmp_path / "a", selector="classifier", max_passages=1)
    with pytest.raises(EmptySelection, match="no passage"):
        run(task_of(["zebra"]), index_of("wave"), tmp_path / "b", selector="classifier", max_passages=1)


def test_ranking_does_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(*map(str, range(500)))
    order = [entry.id for entry in rank_by_score(random_order(index, 5), 500, scored=False)]
    assert sorted(order) == sorted(f"p{n}" for n in range(500))
    assert [entry.id for entry in rank_by_score(random_order(index, 5), 3, scored=False)] == order
    monkeypatch.setattr(sampling, "_MAX_IDS", 64)
    several = list(rank_by_score(random_order(index, 5), 500, scored=False))
    assert [entry.id for entry in several] == order and [entry.position for entry in several] == list(range(500))


def test_progress_of_a_scan_counts_passages(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    params = Selection(selector="dsir", max_passages=5)
    corpus = Corpus("docs", "v1", index_of("wave", "ship"))
    select(
        task_of(["wave"]), corpus, params, tmp_path, seed=0, scratch=tmp_path / "w", progress=lambda *t: seen.append(t)
    )
    assert set(seen) == {(2, 2, "passages")}
