"""The task: labeled texts in train, validation and test, the labels and the metric."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tlm_core.errors import CorruptArtifact
from tlm_core.parquet import open_parquet
from tlm_core.tasks.duplicates import scan
from tlm_core.tasks.metrics import Targets
from tlm_core.tasks.types import TaskType, task_type_of

SPLITS = ("train", "validation", "test")
LABELED = ("train", "validation")  # the splits from which the refit learns
FURTHER = "test_"  # prefix of the names of further test sets
_ROW_GROUP = 65_536
_BATCH = 2_048


def earlier_splits(split: str) -> tuple[str, ...]:
    """Return the splits that a model learns from before the job scores this model on `split`.

    For a test split, these are train and validation, because the refit trains the returned model on both.
    """
    return ("train",) if split == "validation" else LABELED


def task_schema(pair: bool, metric: str = "macro_f1") -> pa.Schema:
    """Return the schema of one split: row, text, [text_pair,] label. The metric determines the type of `label`."""
    pairs = [("text_pair", pa.string())] if pair else []
    label = pa.from_numpy_dtype(np.dtype(task_type_of(metric).stored))
    return pa.schema([("row", pa.int64()), ("text", pa.string()), *pairs, ("label", label)])


def read_labels(folder: Path) -> list[str]:
    """Return the labels of the task in `folder` without reading its rows. Raises OSError."""
    return json.loads((folder / "task.json").read_text(encoding="utf-8"))["labels"]


@dataclass(frozen=True)
class Task:
    """A validated task: classification or regression of texts.

    pair: whether each row has two texts. labels: in regression, the only label is the name of the target.
    splits: a pyarrow table for each of train, validation, test, and further test sets (`test_NAME`). The columns are
    `row` (the record number in the source file, from 1), `text`, `text_pair` (only for pairs) and `label` (an index
    into `labels`, or a regression target).
    """

    name: str
    labels: tuple[str, ...]
    metric: str
    pair: bool
    language: str
    splits: Mapping[str, pa.Table]

    @property
    def type(self) -> TaskType:
        """The type of the task, which the metric determines."""
        return task_type_of(self.metric)

    @property
    def further_tests(self) -> list[str]:
        """Sorted names of the further test sets (`test_NAME`)."""
        return sorted(set(self.splits) - set(SPLITS))

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows of each split."""
        return {split: len(self.splits[split]) for split in (*SPLITS, *self.further_tests)}

    def texts(self, split: str) -> list[str]:
        """Return the texts of a split in row order. For pairs, these are the first texts."""
        return self.splits[split]["text"].to_pylist()

    def text_pairs(self, split: str) -> list[str] | None:
        """Return the second texts of a split, or None if the task has single texts."""
        return self.splits[split]["text_pair"].to_pylist() if self.pair else None

    def label_ids(self, split: str) -> NDArray[np.int32]:
        """Return the label of each row as an index into `labels`, [rows]. Raises ValueError for a regression task."""
        if not self.type.has_classes:
            raise ValueError(f"Task '{self.name}' has regression targets, not labels. Read them with `targets`.")
        return self.splits[split]["label"].to_numpy()

    def targets(self, split: str) -> Targets:
        """Return the label indices (int32), or the regression targets (float64), [rows]."""
        return self.splits[split]["label"].to_numpy()

    def label_values(self, split: str) -> pa.Array | pa.ChunkedArray:
        """Return the column `label` as a user writes the values: names of labels (strings), or regression targets."""
        column = self.splits[split]["label"]
        return pa.array(self.labels, pa.string()).take(column) if self.type.has_classes else column

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the record number of each row in the source file, [rows], from 1."""
        return self.splits[split]["row"].to_numpy()

    def repeated(self, split: str) -> NDArray[np.bool_]:
        """Return a mask [rows]: True for each text that is in `earlier_splits(split)` too, ignoring case and space."""
        return np.isin(self._keys(split), np.concatenate([self._keys(name) for name in earlier_splits(split)]))

    def _keys(self, split: str) -> NDArray[np.int64]:
        table = self.splits[split]
        return scan(table["text"], table["text_pair"] if self.pair else None).keys

    def write(self, folder: Path) -> None:
        """Write `task.json` and `{split}.parquet` for each split to `folder`. Equal tasks give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        for split in self.counts:
            table = self.splits[split].combine_chunks()
            pq.write_table(table, folder / f"{split}.parquet", compression="zstd", row_group_size=_ROW_GROUP)
        facts = {
            "name": self.name,
            "labels": list(self.labels),
            "metric": self.metric,
            "pair": self.pair,
            "language": self.language,
            "counts": self.counts,
        }
        (folder / "task.json").write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Task:
        """Return the task that `write` wrote to `folder`. Raises CorruptArtifact for damaged files."""
        try:
            facts = json.loads((folder / "task.json").read_text(encoding="utf-8"))
            counts = facts.pop("counts")
            names = {*SPLITS, *counts}
            splits = {split: _table(folder / f"{split}.parquet") for split in names}
            task = cls(**{**facts, "labels": tuple(facts["labels"]), "splits": splits})
        except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are OSError or ValueError
            raise CorruptArtifact(
                f"Cannot read the task in {folder} ({error}). Retry the job: tlm retry JOB."
            ) from error
        schema = task_schema(task.pair, task.metric)
        fits = all(table.schema.equals(schema) for table in splits.values())
        if not fits or task.counts != counts:
            raise CorruptArtifact(f"The splits in {folder} do not match its task.json. Retry the job: tlm retry JOB.")
        return task


def _table(path: Path) -> pa.Table:
    """Read a table in batches, because a read in one call needs four times the size of the table in memory."""
    with open_parquet(path) as file:
        table = pa.Table.from_batches(file.iter_batches(_BATCH, use_threads=False), file.schema_arrow)
    pa.default_memory_pool().release_unused()  # memory of the decoder
    return table
