"""Rows of a job's task by their numbers in the dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import CorruptArtifact, NotFound
from tlm_core.tasks.task import read_labels
from tlm_core.wording import value_in_words


@dataclass(frozen=True)
class TaskRow:
    """The first characters of the texts of a row, and the row's label or regression target as text."""

    text: str
    text_pair: str | None
    label: str


def task_rows(
    artifacts: ArtifactStore, task: ManifestRef | None, rows: Iterable[tuple[str, int]], chars: int
) -> dict[tuple[str, int], TaskRow]:
    """Return (split, row number) → row, with texts cut after `chars` characters, or {} if the task is not available."""
    import pyarrow.parquet as pq

    numbers: dict[str, set[int]] = {}
    for split, number in rows:
        numbers.setdefault(split, set()).add(number)
    result: dict[tuple[str, int], TaskRow] = {}
    if task is None or not numbers:
        return result
    try:
        folder = artifacts.localize(task)
        labels = read_labels(folder)
        for split, own in numbers.items():
            table = pq.read_table(folder / f"{split}.parquet", filters=[("row", "in", sorted(own))])
            for entry in table.to_pylist():
                label, pair = entry["label"], entry.get("text_pair")
                name = value_in_words(label) if isinstance(label, float) else labels[label]
                result[split, entry["row"]] = TaskRow(entry["text"][:chars], pair and pair[:chars], name)
    except (OSError, NotFound, CorruptArtifact):
        return {}  # Pages are useful without the texts of the task.
    return result
