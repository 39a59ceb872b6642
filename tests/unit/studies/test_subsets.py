"""Nested, stratified subsets, and sizes that cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.made import made_task
from tlm_core.errors import InvalidRequest
from tlm_core.studies.subsets import curve_sizes, first_rows, order, rows_of
from tlm_core.tasks.task import Task


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(0, 5))
def test_every_beginning_is_stratified(labels: list[int], seed: int) -> None:
    values = np.array(labels)
    found = order(values, seed)
    assert sorted(found) == list(range(len(values)))
    for n in range(1, len(values) + 1):
        for label in np.unique(values):
            share = np.mean(values == label)
            off = abs(np.sum(values[found[:n]] == label) - n * share)
            assert off <= 0.5 + share * len(np.unique(values)) / 2 + 1e-9


def test_a_larger_subset_holds_the_smaller_and_another_seed_draws_others(tmp_path: Path) -> None:
    task = Task.read(made_task(tmp_path, (90, 10, 10)))
    small, large = (set(first_rows(task, rows, 0).rows("train")) for rows in (20, 50))
    assert small < large
    assert small != set(first_rows(task, 20, 1).rows("train"))
    assert first_rows(task, 20, 0).splits["test"] is task.splits["test"]


def test_the_whole_is_the_task_itself_whatever_the_seed(tmp_path: Path) -> None:
    task = Task.read(made_task(tmp_path, (60, 10, 10)))
    for seed in (0, 1):
        assert first_rows(task, 60, seed).splits["train"].equals(task.splits["train"])


@pytest.mark.parametrize(("asked", "rows"), [(0.01, 2), (0.3, 60), (1, 200), (1.0, 200), (50, 50), (0.001, 1)])
def test_a_size_up_to_one_is_a_share_and_above_a_count(asked: float, rows: int) -> None:
    assert rows_of(asked, 200) == rows


def test_more_labels_than_there_are_is_refused(tmp_path: Path) -> None:
    task = Task.read(made_task(tmp_path, (60, 10, 10)))
    with pytest.raises(InvalidRequest, match="a subset of 61 labelled texts was asked for, but train has 60"):
        curve_sizes(task, [61], [0])


def test_a_size_at_which_a_class_vanishes_is_dropped_with_the_reason(tmp_path: Path) -> None:
    task = Task.read(made_task(tmp_path, (60, 10, 10)))
    sizes = curve_sizes(task, [1.0, 2, 0.5], [0, 1])
    assert [size.rows for size in sizes] == [2, 30, 60]
    assert sizes[0].dropped is not None and "with 2 texts no text of" in sizes[0].dropped
    assert sizes[1].dropped is None and sizes[2].dropped is None


def test_no_size_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="every size loses a class"):
        curve_sizes(Task.read(made_task(tmp_path, (60, 10, 10))), [1 / 60, 2], [0])


def test_two_sizes_that_mean_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="both mean 30 texts"):
        curve_sizes(Task.read(made_task(tmp_path, (60, 10, 10))), [0.5, 30], [0])
