"""Rows of a job's task by their numbers in the dataset."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import CorruptArtifact, NotFound
from tlm_core.tasks.task import read_labels
from tlm_core.wording import value_in_words


@dataclass(frozen=True)
class TaskRow:
    """The start of the texts of a row, and its label or regression target."""

    text: str
    text_pair: str | None
    label: str


def task_rows(
    artifacts: ArtifactStore, task: ManifestRef | None, split: str, numbers: Collection[int], chars: int
) -> dict[int, TaskRow]:
    """Return the numbered rows of a split, with texts cut after `chars` characters.

    The result is empty if the task is not available, because pages are useful without its texts.
    """
    import pyarrow.parquet as pq

    if task is None or not numbers:
        return {}
    try:
        folder = artifacts.localize(task)
        labels = read_labels(folder)
        entries = pq.read_table(folder / f"{split}.parquet", filters=[("row", "in", sorted(numbers))]).to_pylist()
    except (OSError, NotFound, CorruptArtifact):
        return {}

    def row(entry: dict[str, Any]) -> TaskRow:
        label, pair = entry["label"], entry.get("text_pair")
        name = value_in_words(label) if isinstance(label, float) else labels[label]
        return TaskRow(entry["text"][:chars], None if pair is None else pair[:chars], name)

    return {entry["row"]: row(entry) for entry in entries}
