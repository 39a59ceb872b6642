"""Suspect labels: errors that were made on purpose come first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from tlm_core.evaluation.suspects import LISTED, LabelModel, Split, rank_suspects
from tlm_core.linear.fit import fit
from tlm_core.tasks.task import Task, task_schema

LABELS = ("a", "b", "c", "d")


def split_of(labels: np.ndarray, strength: float, seed: int = 0) -> Split:
    """Return rows whose logits point to the label with normal noise."""
    logits = np.random.default_rng(seed).normal(0, 1, (len(labels), len(LABELS))).astype(np.float32)
    logits[np.arange(len(labels)), labels] += strength
    return Split(logits, labels, np.arange(1, len(labels) + 1), counted=True)


def flipped(labels: np.ndarray, share: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels with some of them changed, and the places of the changes."""
    random = np.random.default_rng(1)
    places = random.choice(len(labels), round(share * len(labels)), replace=False)
    result = labels.copy()
    result[places] = (labels[places] + random.integers(1, len(LABELS), len(places))) % len(LABELS)
    return result, places


def share_in_first_tenth(split: Split, places: np.ndarray) -> tuple[float, bool]:
    """Return the share of the places in the first tenth of the ranking, and whether neighbors count."""
    model = LabelModel.fit(split)
    scores, _ = model.doubts(split)
    first = np.argsort(-scores, kind="stable")[: len(scores) // 10]
    return float(np.isin(places, first).mean()), bool(model.transitions)


def sequences(random: np.random.Generator) -> np.ndarray:
    """Return labels that follow each other: a, then b, then c, then d, of random lengths."""
    return np.concatenate([np.repeat(np.arange(4), random.integers(1, 4, 4)) for _ in range(500)])


def shuffled(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 4, 4000)


def with_given(split: Split, labels: np.ndarray) -> Split:
    return Split(split.outputs, labels, split.numbers, split.counted)


@pytest.mark.parametrize(("order", "neighbors"), [(sequences, True), (shuffled, False)])
def test_changed_labels_come_first(order: Callable[[np.random.Generator], np.ndarray], neighbors: bool) -> None:
    true = order(np.random.default_rng(0))
    given, places = flipped(true)
    share, used = share_in_first_tenth(with_given(split_of(true, 2.0), given), places)
    assert used == neighbors
    assert share > 0.8


def test_neighbors_reveal_errors_that_texts_do_not() -> None:
    true = sequences(np.random.default_rng(0))
    given, places = flipped(true)
    split = with_given(split_of(true, 0.7), given)
    share, used = share_in_first_tenth(split, places)
    alone, _ = share_in_first_tenth(Split(split.outputs, given, 3 * split.numbers, counted=True), places)
    assert used and share > alone + 0.1


def test_neighbors_do_not_count_in_a_file_sorted_by_label() -> None:
    true = shuffled(np.random.default_rng(0))
    given, places = flipped(true)
    order = np.argsort(given, kind="stable")
    split = split_of(true, 2.0)
    split = Split(split.outputs[order], given[order], split.numbers, counted=True)
    share, used = share_in_first_tenth(split, np.flatnonzero(np.isin(order, places)))
    assert not used and share > 0.8


def test_row_does_not_count_for_itself() -> None:
    labels = np.array([0, 1, 0, 2, 0, 1])
    split = Split(np.zeros((6, 4), np.float32), labels, np.arange(1, 7), counted=True)
    frequencies = np.full(4, 0.25)
    counts = np.zeros((4, 4))
    np.add.at(counts, (labels[1:], labels[:-1]), 1)  # of the row after
    model = LabelModel(np.zeros(2), np.zeros(4), (counts,), frequencies)
    # OFFSETS begins with the row two before: the neighbor of the third row is the first.
    features = model.features(split, np.array([3]))
    expected = counts[labels[1]] + 10 * frequencies
    expected[labels[3]] -= 1
    np.testing.assert_allclose(features[1, 0], np.log(expected / (counts[labels[1]].sum() - 1 + 10)))
    missing = model.features(split, np.array([0]))
    np.testing.assert_allclose(missing[1, 0], np.log(frequencies))


def test_score_is_the_probability_against_the_given_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlm_core.evaluation.suspects._CELLS", 8)  # two rows at once
    outputs = np.log(np.array([[0.6, 0.2, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], [1, 1e-30, 1e-35, 1e-35]], np.float32))
    split = Split(outputs, np.array([1, 3, 0]), np.array([1, 2, 3]), counted=True)
    model = LabelModel(np.array([1.0]), np.zeros(4), (), np.full(4, 0.25))
    scores, suggested = model.doubts(split)
    assert suggested.tolist() == [0, 2, 1]
    assert scores == pytest.approx([0.6 / 0.8, 0.3 / 0.7, 0])
    assert model.doubts(Split(1000 * outputs, split.labels, split.numbers, counted=True))[0][2] == 0


def texts_of(labels: np.ndarray) -> list[str]:
    random = np.random.default_rng(3)
    return [
        " ".join(f"{LABELS[label]}{random.integers(9)} word{random.integers(30)}" for _ in "123") for label in labels
    ]


def test_wrong_labels_of_a_task_are_listed_with_row_and_suggestion() -> None:
    random = np.random.default_rng(0)
    splits, wrong = {}, {}
    for name, count in (("train", 400), ("validation", 80), ("test", 80)):
        true = random.integers(0, 4, count)
        given, places = flipped(true)
        columns = {"row": np.arange(count) + 11, "text": texts_of(true), "label": given.astype(np.int32)}
        splits[name] = pa.table(columns, schema=task_schema(False))
        wrong |= {(name, int(place) + 11): (LABELS[given[place]], LABELS[true[place]]) for place in places}
    task = Task("made", LABELS, "macro_f1", False, "en", splits)
    fitted = fit(task)
    outputs = {"train": fitted.held_out, "validation": fitted.model.outputs([(t,) for t in task.texts("validation")])}
    result = rank_suspects(task, outputs)
    listed = {(row["split"], row["row"]): (row["label"], row["suggested"]) for row in result["rows"]}
    assert listed == {place: labels for place, labels in wrong.items() if place[0] != "test"}
    assert result["total"] == len(result["rows"]) <= LISTED and not result["neighbors"]
    scores = [row["score"] for row in result["rows"]]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0.5
