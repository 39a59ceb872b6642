"""Nested, stratified subsets, and invalid sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.made import made_task
from tlm_core.errors import InvalidRequest
from tlm_core.studies.subsets import curve_sizes, first_rows, rows_of, stratified_order
from tlm_core.tasks.task import Task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return Task.read(made_task(tmp_path_factory.mktemp("task"), (60, 10, 10)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(0, 5))
def test_every_prefix_is_stratified(labels: list[int], seed: int) -> None:
    values = np.array(labels)
    order = stratified_order(values, seed)
    assert sorted(order) == list(range(len(values)))
    for n in range(1, len(values) + 1):
        for label in np.unique(values):
            share = np.mean(values == label)
            off = abs(np.sum(values[order[:n]] == label) - n * share)
            assert off <= 0.5 + share * len(np.unique(values)) / 2 + 1e-9


def test_larger_subset_contains_smaller_and_seeds_differ(task: Task) -> None:
    small, large = (set(first_rows(task, rows, 0).rows("train")) for rows in (20, 50))
    assert small < large
    assert small != set(first_rows(task, 20, 1).rows("train"))
    assert first_rows(task, 20, 0).splits["test"] is task.splits["test"]


def test_full_size_equals_the_task_for_every_seed(task: Task) -> None:
    for seed in (0, 1):
        assert first_rows(task, 60, seed).splits["train"].equals(task.splits["train"])


@pytest.mark.parametrize(("size", "rows"), [(0.01, 2), (0.3, 60), (1, 200), (1.0, 200), (50, 50), (0.001, 1)])
def test_size_up_to_one_is_a_share_and_above_a_count(size: float, rows: int) -> None:
    assert rows_of(size, 200) == rows


def test_size_above_train_split_is_rejected(task: Task) -> None:
    with pytest.raises(InvalidRequest, match="The size 61 exceeds the 60 texts of train"):
        curve_sizes(task, [61], [0])


def test_size_that_loses_a_class_is_dropped_with_reason(task: Task) -> None:
    sizes = curve_sizes(task, [1.0, 2, 0.5], [0, 1])
    assert [size.rows for size in sizes] == [2, 30, 60]
    assert sizes[0].dropped is not None and "2 texts include none with the label" in sizes[0].dropped
    assert sizes[1].dropped is None and sizes[2].dropped is None


def test_request_with_only_dropped_sizes_is_rejected(task: Task) -> None:
    with pytest.raises(InvalidRequest, match="No size includes texts of all labels"):
        curve_sizes(task, [1 / 60, 2], [0])


def test_two_sizes_with_same_rows_are_rejected(task: Task) -> None:
    with pytest.raises(InvalidRequest, match="both have 30 texts"):
        curve_sizes(task, [0.5, 30], [0])
