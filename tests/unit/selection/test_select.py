"""The files of a selection from a task and an index."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.unit.selection.fake_index import WordCountIndex
from tests.unit.selection.make import index_of, rows, run, task_of
from tlm_core.corpus.passages import Passage
from tlm_core.errors import EmptySelection
from tlm_core.selection.interface import Corpus
from tlm_core.selection.retrieve import BATCH
from tlm_core.selection.select import select
from tlm_core.selection.selectors import Selection

LEAK = "one two three four five six seven eight nine"


def test_union_contains_each_passage_once_at_its_best_rank(tmp_path: Path) -> None:
    index = index_of("red fox", "red", "fox den hill")
    facts = run(task_of(["red fox", "fox den hill"]), index, tmp_path)
    assert [(r["id"], r["text"], r["source"], r["rank"], r["score"]) for r in rows(tmp_path, "passages")] == [
        ("p0", "red fox", "s0", 1, 2.0), ("p2", "fox den hill", "s0", 1, 3.0), ("p1", "red", "s1", 2, 1.0),
    ]  # fmt: skip
    assert facts["passages"] == 3
    assert facts["queries"] == {
        "train_rows": 2, "without_hit": {"count": 0, "rows": []}, "candidates": 3, "cut_by_query_cap": 0,
        "cut_by_budget": 0,
    }  # fmt: skip
    assert facts["sources"] == [
        {"source": "s0", "passages": 2, "share": 0.666667}, {"source": "s1", "passages": 1, "share": 0.333333},
    ]  # fmt: skip
    assert facts["other_sources"] == {"sources": 0, "passages": 0}


def test_report_lists_the_largest_sources_and_counts_the_others(tmp_path: Path) -> None:
    names = [f"https://example.org/{n:03}" for n in range(103)]
    index = WordCountIndex([Passage(f"p{n}", "red", names[min(n, 102)]) for n in range(105)])
    facts = run(task_of(["red"]), index, tmp_path, top_k=105)
    assert [entry["source"] for entry in facts["sources"]] == [names[102], *names[:99]]
    assert facts["other_sources"] == {"sources": 3, "passages": 3}
    assert facts["sources"][0] == {"source": names[102], "passages": 3, "share": round(3 / 105, 6)}


def test_provenance_lists_every_row_that_hit_a_passage(tmp_path: Path) -> None:
    run(task_of(["red fox", "fox", "red fox"]), index_of("red fox", "red"), tmp_path)
    assert [tuple(row.values()) for row in rows(tmp_path, "provenance")] == [
        ("p0", 1, 1, 2.0), ("p0", 2, 1, 1.0), ("p0", 3, 1, 2.0), ("p1", 1, 2, 1.0), ("p1", 3, 2, 1.0),
    ]  # fmt: skip
    assert rows(tmp_path, "passages")[0]["score"] == 2.0


def test_equal_texts_are_searched_once(tmp_path: Path) -> None:
    index = index_of("red fox")
    facts = run(task_of(["red", "red", "fox"]), index, tmp_path)
    assert index.searched == [["red", "fox"]]
    assert facts["queries"]["train_rows"] == 3


def test_top_k_limits_the_hits_of_each_query(tmp_path: Path) -> None:
    run(task_of(["a b c"]), index_of("a", "a b", "a b c"), tmp_path, top_k=2)
    assert [row["id"] for row in rows(tmp_path, "passages")] == ["p2", "p1"]


def test_many_hits_are_searched_for_fewer_queries_at_once(tmp_path: Path) -> None:
    index = index_of("w1", "w2")
    run(task_of([f"w{n}" for n in range(2 * BATCH)]), index, tmp_path, top_k=10_000)
    assert {len(queries) for queries in index.searched} == {BATCH // 10, 2 * BATCH % (BATCH // 10)}


def test_budget_selects_the_best_ranks(tmp_path: Path) -> None:
    facts = run(task_of(["a b", "c d"]), index_of("a", "a b", "c d", "c"), tmp_path, max_passages=3)
    assert [row["id"] for row in rows(tmp_path, "passages")] == ["p1", "p2", "p0"]
    assert facts["queries"]["cut_by_budget"] == 1
    assert {row["passage_id"] for row in rows(tmp_path, "provenance")} == {"p0", "p1", "p2"}


def test_passages_with_test_texts_are_dropped_and_listed(tmp_path: Path) -> None:
    index = index_of(f"so {LEAK} said", "one apple", "one pear")
    facts = run(task_of(["one"], held_out=["an unrelated text of some words", LEAK]), index, tmp_path, max_passages=2)
    assert [row["id"] for row in rows(tmp_path, "passages")] == ["p1", "p2"]
    [leak] = rows(tmp_path, "leaks")
    assert (leak["passage_id"], leak["split"], leak["row"]) == ("p0", "test", 2)
    assert facts["leaks"] == {"passages": 1, "texts": 1}
    assert facts["queries"]["cut_by_budget"] == 0
    assert {row["passage_id"] for row in rows(tmp_path, "provenance")} == {"p1", "p2"}


def test_disabled_leak_filter_drops_no_passage(tmp_path: Path) -> None:
    facts = run(task_of(["one"], held_out=[LEAK]), index_of(LEAK), tmp_path, leak_filter=False)
    assert facts["passages"] == 1 and rows(tmp_path, "leaks") == []


def test_pair_searches_joined_texts_and_leaks_by_either(tmp_path: Path) -> None:
    index = index_of("left right", f"left {LEAK}")
    task = task_of(["left"], held_out=["x"], pairs={"train": ["right"], "test": [LEAK]})
    run(task, index, tmp_path)
    assert index.searched == [["left right"]]
    assert [row["id"] for row in rows(tmp_path, "passages")] == ["p0"]


def test_selection_without_hits_fails_and_names_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(EmptySelection, match="'docs'"):
        run(task_of(["zebra"]), index_of("red fox"), tmp_path)


def test_selection_of_leaks_only_fails(tmp_path: Path) -> None:
    with pytest.raises(EmptySelection, match="repeats a validation or test text"):
        run(task_of(["one"], held_out=[LEAK]), index_of(LEAK), tmp_path)


def test_selection_from_an_empty_corpus_names_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(EmptySelection, match="corpus 'docs' contains no passage"):
        run(task_of(["one"]), index_of(), tmp_path, selector="whole")


def test_rows_without_a_hit_are_counted_and_listed(tmp_path: Path) -> None:
    facts = run(task_of(["zebra", "red", "gnu"]), index_of("red fox"), tmp_path)
    assert facts["queries"]["without_hit"] == {"count": 2, "rows": [1, 3]}


def test_random_sample_has_the_size_of_the_query_hits(tmp_path: Path) -> None:
    index = index_of(LEAK, "red fox", "red", *(f"other {n}" for n in range(40)))
    task = task_of(["red", "one"], held_out=[LEAK])
    facts = run(task, index, tmp_path / "a", selector="random", seed=1)
    drawn = [row["id"] for row in rows(tmp_path / "a", "passages")]
    assert facts["passages"] == len(set(drawn)) == 2
    assert [row["rank"] for row in rows(tmp_path / "a", "passages")] == [1, 2]
    assert {row["score"] for row in rows(tmp_path / "a", "passages")} == {None}
    assert facts["queries"] is None and rows(tmp_path / "a", "provenance") == []
    run(task, index, tmp_path / "b", selector="random", seed=1)
    assert [row["id"] for row in rows(tmp_path / "b", "passages")] == drawn
    others = [run(task, index, tmp_path / f"s{n}", selector="random", seed=n) for n in range(2, 6)]
    assert len(others) == 4 and any(
        [r["id"] for r in rows(tmp_path / f"s{n}", "passages")] != drawn for n in range(2, 6)
    )


def test_random_sample_with_budget_needs_no_search_and_no_leaks(tmp_path: Path) -> None:
    index = index_of(LEAK, *(f"other {n}" for n in range(9)))
    task = task_of(["zebra"], held_out=[LEAK])
    facts = run(task, index, tmp_path, selector="random", max_passages=50)
    assert index.searched == []
    assert facts["passages"] == 9
    assert "p0" not in {row["id"] for row in rows(tmp_path, "passages")}


def test_selector_none_selects_no_passage(tmp_path: Path) -> None:
    assert run(task_of(["red"]), index_of("red"), tmp_path, selector="none")["passages"] == 0
    assert rows(tmp_path, "passages") == []


def test_equal_inputs_write_equal_bytes(tmp_path: Path) -> None:
    index, task = (
        index_of(*(f"w{n % 7} w{n % 5} w{n}" for n in range(300))),
        task_of([f"w{n} w{n + 1}" for n in range(9)]),
    )
    digests = []
    for name in ("a", "b"):
        run(task, index, tmp_path / name, top_k=40)
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / name).iterdir()})
    assert digests[0] == digests[1]
    assert digests[0].keys() == {"passages.parquet", "provenance.parquet", "leaks.parquet", "selection.json"}
    assert json.loads((tmp_path / "a" / "selection.json").read_text())["corpus"] == {
        "name": "docs", "version": "v1", "passages": 300,
    }  # fmt: skip


def test_progress_counts_train_rows_and_can_abort(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    task, index = task_of([f"w{n // 2}" for n in range(4 * BATCH)]), index_of(*(f"w{n}" for n in range(2 * BATCH)))

    def watch(done: int, total: int, unit: str) -> None:
        seen.append((done, total, unit))
        if len(seen) == 2:
            raise KeyboardInterrupt

    corpus, scratch = Corpus("docs", "v1", index), tmp_path / "scratch"
    with pytest.raises(KeyboardInterrupt):
        select(task, corpus, Selection(), tmp_path, seed=0, scratch=scratch, progress=watch)
    assert len(index.searched) == 1
    select(
        task, corpus, Selection(), tmp_path, seed=0, scratch=tmp_path / "scratch", progress=lambda *t: seen.append(t)
    )
    assert seen[:2] == [(0, 4 * BATCH, "queries"), (2 * BATCH, 4 * BATCH, "queries")]
    assert set(seen[4:]) == {(4 * BATCH, 4 * BATCH, "queries")}
