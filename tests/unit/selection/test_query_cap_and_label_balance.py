"""Caps for queries and turns for labels in the selector `bm25`, and their report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.selection.make import ids, index_of, regression_of, rows, run, task_of
from tlm_core.errors import InvalidRecipe


def test_query_contributes_no_more_than_its_cap(tmp_path: Path) -> None:
    index = index_of("a b c", "a b", "a", "d")
    facts = run(task_of(["a b c", "d"]), index, tmp_path, per_query_cap=2)
    assert ids(tmp_path) == ["p0", "p3", "p1"]
    assert facts["queries"]["cut_by_query_cap"] == 1 and facts["queries"]["cut_by_budget"] == 0


def test_spent_cap_charges_the_next_query(tmp_path: Path) -> None:
    index = index_of("a x", "a x y")
    run(task_of(["a x", "y"]), index, tmp_path, per_query_cap=1)
    assert ids(tmp_path) == ["p0", "p1"]


def test_leak_is_not_charged(tmp_path: Path) -> None:
    leak = "one two three four five six seven eight nine"
    index = index_of(f"{leak} a", "a")
    run(task_of(["a"], held_out=[leak]), index, tmp_path, per_query_cap=1)
    assert ids(tmp_path) == ["p1"]


def test_labels_take_turns_within_the_budget(tmp_path: Path) -> None:
    index = index_of(*(f"a a{n}" for n in range(6)), "b", "b c")
    task = task_of(["a", *(f"a{n}" for n in range(6)), "b c"], labels=[*[0] * 7, 1])
    run(task, index, tmp_path / "plain", max_passages=4)
    assert sum(name in ("p6", "p7") for name in ids(tmp_path / "plain")) == 0
    run(task, index, tmp_path / "balanced", max_passages=4, per_label_balance=True)
    assert sum(name in ("p6", "p7") for name in ids(tmp_path / "balanced")) == 2
    ranked = [(row["rank"], row["id"]) for row in rows(tmp_path / "balanced", "passages")]
    assert ranked == sorted(ranked)


def test_exhausted_label_leaves_its_turns_to_the_others(tmp_path: Path) -> None:
    index = index_of(*(f"a a{n}" for n in range(6)), "b")
    facts = run(task_of(["a", "b"], labels=[0, 1]), index, tmp_path, max_passages=5, per_label_balance=True)
    assert facts["passages"] == 5 and facts["queries"]["cut_by_budget"] == 2


def test_report_counts_ranks_and_label_overlap(tmp_path: Path) -> None:
    index = index_of("a b", "a", "b", "c")
    facts = run(task_of(["a", "b", "c"], labels=[0, 0, 1]), index, tmp_path)
    assert facts["ranks"] == [2, 2] and sum(facts["ranks"]) == facts["passages"]
    assert facts["labels"] == {"names": ["a", "b"], "passages": [3, 1], "jaccard": [[1.0, 0.0], [0.0, 1.0]]}
    facts = run(task_of(["a", "b"], labels=[0, 1]), index, tmp_path / "both")
    assert facts["labels"]["jaccard"][0][1] == round(1 / 3, 6)


def test_label_without_hits_has_no_overlap(tmp_path: Path) -> None:
    facts = run(task_of(["a", "zebra"], labels=[0, 1]), index_of("a"), tmp_path)
    assert facts["labels"] == {"names": ["a", "b"], "passages": [1, 0], "jaccard": [[1.0, 0.0], [0.0, None]]}


def test_regression_selection_has_no_label_facts(tmp_path: Path) -> None:
    facts = run(regression_of(["a b", "c"]), index_of("a b", "b", "c"), tmp_path)
    assert ids(tmp_path) == ["p0", "p2", "p1"]
    assert facts["labels"] is None and facts["ranks"] == [2, 1]


def test_label_balance_of_regression_fails_before_any_search(tmp_path: Path) -> None:
    index = index_of("a b", "b")
    with pytest.raises(InvalidRecipe, match=r"is a regression task"):
        run(regression_of(["a b"]), index, tmp_path, max_passages=4, per_label_balance=True)
    assert index.searched == []


def test_overlap_of_many_labels_is_omitted_with_the_reason(tmp_path: Path) -> None:
    for count in (64, 65):
        labels = tuple(f"label{n}" for n in range(count))
        task = replace(task_of([f"w{n} all" for n in range(count)], labels=range(count)), labels=labels)
        index = index_of(*(f"w{n}" for n in range(count)), "all")
        overlap = run(task, index, tmp_path / str(count))["labels"]
        assert overlap["passages"] == [2] * count
        if count == 64:
            assert all(overlap["jaccard"][i][j] == (1.0 if i == j else 0.333333) for i in (0, 63) for j in (0, 5, 63))
        else:
            assert overlap["jaccard"] is None and "64 labels" in overlap["reason"]
