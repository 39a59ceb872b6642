"""The real data sets validate, and what is known of their faults is found."""

from __future__ import annotations

import pytest

from tests.support import shared_data
from tlm_core.tasks.validate import load_task

pytestmark = pytest.mark.data


@pytest.mark.parametrize(
    ("name", "labels", "counts", "repeated"),
    [
        ("sciie", 7, (3219, 455, 974), 0),
        ("acl_arc", 6, (1688, 114, 139), 52),
        ("sci_cite", 3, (7320, 916, 1861), 0),
        # 173 if punctuation is left out too: one test text is ": +3".
        ("csabstruct", 5, (11333, 2026, 1349), 172),
    ],
)
def test_real_task_is_read_and_its_repeated_texts_are_detected(
    name: str, labels: int, counts: tuple[int, ...], repeated: int
) -> None:
    task, report = load_task(shared_data() / "tasks" / name)
    assert len(task.labels) == labels
    assert tuple(task.counts.values()) == counts
    assert report["overlap"]["train_test"] == repeated <= task.repeated("test").sum()
    assert len(report["overlap"]["test_rows"]) == min(task.repeated("test").sum(), 100)


def test_texts_of_test_in_train_or_validation_are_detected() -> None:
    task, _ = load_task(shared_data() / "tasks" / "acl_arc")
    assert task.repeated("test").sum() == 54  # 52 of them are in train
    assert task.repeated("validation").sum() == 43


def test_validation_texts_of_acl_arc_in_train_are_detected() -> None:
    _, report = load_task(shared_data() / "tasks" / "acl_arc")
    assert report["overlap"]["train_validation"] == 43
