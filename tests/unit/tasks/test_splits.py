"""Splits that are cut are stratified, repeatable, and keep copies together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tasks.make import jsonl, messages, put, rows, validate
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.splits import cut_splits
from tlm_core.tasks.validate import load_task

BOTH = ("validation", "test")


def arrays(count: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(count, dtype=np.int32) % labels, np.arange(count, dtype=np.int64)


def test_a_tenth_of_each_label_goes_to_each_missing_split() -> None:
    labels = np.repeat(np.array([0, 1, 2], dtype=np.int32), (100, 50, 20))
    cut = cut_splits(labels, np.arange(170, dtype=np.int64), BOTH, seed=1)
    assert {split: np.bincount(labels[at]).tolist() for split, at in cut.items()} == {
        "train": [80, 40, 16],
        "validation": [10, 5, 2],
        "test": [10, 5, 2],
    }


def test_only_the_missing_split_is_cut() -> None:
    cut = cut_splits(*arrays(100, 2), ("validation",), seed=1)
    assert {split: len(at) for split, at in cut.items()} == {"train": 90, "validation": 10}


def test_the_seed_decides() -> None:
    labels, keys = arrays(200, 2)
    first, again, other = (cut_splits(labels, keys, BOTH, seed)["test"].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_the_cut_is_the_same_on_every_machine() -> None:
    assert cut_splits(*arrays(60, 3), ("test",), seed=7)["test"].tolist() == [10, 15, 20, 21, 31, 59]


def test_the_values_of_the_keys_mean_nothing() -> None:
    labels, keys = arrays(200, 3)
    keys //= 2
    shuffled = np.random.RandomState(0).permutation(100).astype(np.int64)[keys] * -7
    for split, positions in cut_splits(labels, keys, BOTH, seed=3).items():
        assert positions.tolist() == cut_splits(labels, shuffled, BOTH, seed=3)[split].tolist()


def few_rows(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with so many rows each, all texts different."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return labels, np.arange(len(labels), dtype=np.int64)


def test_labels_with_few_rows_are_shared_out_among_the_splits() -> None:
    labels, keys = few_rows(*[5] * 150)
    cut = cut_splits(labels, keys, BOTH, seed=1)
    validation, test = (set(labels[cut[split]].tolist()) for split in BOTH)
    assert len(validation) == len(test) == 75
    assert validation | test == set(range(150))


def test_the_seed_draws_which_of_equal_labels_a_split_has() -> None:
    labels, keys = few_rows(*[4] * 20)
    seen = [set(labels[cut_splits(labels, keys, ("test",), seed)["test"]].tolist()) for seed in range(40)]
    assert {len(columns) for columns in seen} == {8}
    assert set().union(*seen) == set(range(20))


def test_label_without_rows_wins_among_equal_claims() -> None:
    labels, keys = few_rows(*[15] * 10, *[5] * 10)
    for at in list(cut_splits(labels, keys, BOTH, seed=0).values())[1:]:
        assert set(labels[at].tolist()) == set(range(20))


def test_label_without_spare_rows_yields_to_another() -> None:
    labels, keys = few_rows(*[2] * 60)
    keys[:60] = keys[:60] // 2 * 2  # thirty labels with one text that stands twice
    cut = cut_splits(labels, keys, BOTH, seed=2)
    assert [len(cut[split]) for split in BOTH] == [12, 12]


@pytest.mark.parametrize(
    ("counts", "test"), [((55, 55), [6, 5]), ((56, 16), [6, 1]), ((13, 23), [1, 3]), ((8, 4, 9), [1, 0, 1])]
)
def test_cut_without_ties_is_stable(counts: tuple[int, ...], test: list[int]) -> None:
    labels, keys = few_rows(*counts)
    for at in list(cut_splits(labels, keys, BOTH, seed=1).values())[1:]:
        assert np.bincount(labels[at], minlength=len(counts)).tolist() == test


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=80), st.integers(0, 5))
def test_copies_share_a_split_and_train_has_every_label(drawn: list[tuple[int, int]], seed: int) -> None:
    keys = np.array([key for _, key in drawn], dtype=np.int64)
    label_of_key = {key: label for label, key in reversed(drawn)}
    labels = np.array([label_of_key[int(key)] for key in keys], dtype=np.int32)
    cut = cut_splits(labels, keys, BOTH, seed)
    assert sorted(np.concatenate(list(cut.values())).tolist()) == list(range(len(keys)))
    sides = [set(keys[positions].tolist()) for positions in cut.values()]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert set(labels[cut["train"]].tolist()) == set(labels.tolist())


def test_uploaded_split_is_unchanged(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", jsonl(rows(100)))
    put(tmp_path / "test.jsonl", jsonl(rows(7, start="held out")))
    task, report = load_task(tmp_path)
    assert task.counts == {"train": 90, "validation": 10, "test": 7}
    assert task.rows("test").tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert "validation was cut from train by label with seed 0: train 90, validation 10 rows" in report["notes"]


def test_note_of_a_cut_split_separates_thousands(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", jsonl(rows(2_000)))
    _, report = load_task(tmp_path)
    assert any(note.endswith("train 1,600, validation 200, test 200 rows") for note in report["notes"])


def test_rows_of_a_cut_split_keep_their_numbers_in_the_file(tmp_path: Path) -> None:
    records = rows(100)
    put(tmp_path / "all.jsonl", jsonl(records))
    task, _ = load_task(tmp_path / "all.jsonl", DatasetOptions(split_seed=5))
    for split in ("train", "validation", "test"):
        assert task.texts(split) == [records[row - 1]["text"] for row in task.rows(split)]
        assert [task.labels[i] for i in task.label_ids(split)] == [records[r - 1]["label"] for r in task.rows(split)]


def test_a_label_too_rare_for_the_cut_is_a_warning(tmp_path: Path) -> None:
    rare = [{"text": f"seldom {n}", "label": "rare"} for n in range(2)]
    task, report = load_task(put(tmp_path / "all.jsonl", jsonl([*rows(100), *rare])))
    assert task.counts["train"] + task.counts["validation"] + task.counts["test"] == 102
    assert messages(report, "warnings", "missing_label")


def test_many_labels_with_two_rows_each_can_be_cut(tmp_path: Path) -> None:
    records = rows(200, [f"label {number}" for number in range(100)])
    task, _ = load_task(put(tmp_path / "all.jsonl", jsonl(records)))
    assert task.counts == {"train": 160, "validation": 20, "test": 20}
    assert not set(task.label_ids("validation").tolist()) & set(task.label_ids("test").tolist())


def test_split_without_any_row_to_cut_is_a_data_error(tmp_path: Path) -> None:
    records = [{"text": f"text {number}", "label": str(number)} for number in range(20)]
    _, report = validate(put(tmp_path / "all.jsonl", jsonl([*records, *records])))
    assert messages(report, "faults", "too_few_rows") == [
        f"No row can be cut for {split}: copies of a text stay together, and each label needs a text in train. "
        f"Add {split} as a file."
        for split in BOTH
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_cut_splits_do_not_overlap(tmp_path: Path, seed: int) -> None:
    records = [{"text": f"Text {n % 40}", "label": str(n % 40 % 3)} for n in range(200)]
    _, report = load_task(put(tmp_path / "all.jsonl", jsonl(records)), DatasetOptions(split_seed=seed))
    assert report["overlap"]["train_test"] == report["overlap"]["train_validation"] == 0
    assert report["counts"]["test"] == 15
