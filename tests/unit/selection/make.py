"""Small tasks, indexes and selections for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.unit.selection.fake_index import WordCountIndex
from tlm_core.corpus.passages import Passage
from tlm_core.selection.interface import Corpus
from tlm_core.selection.select import select
from tlm_core.selection.selectors import Selection
from tlm_core.tasks.task import Task, task_schema


def task_of(
    train: Sequence[str],
    held_out: Sequence[str] = (),
    pairs: dict[str, Sequence[str]] | None = None,
    labels: Sequence[int] | None = None,
) -> Task:
    texts = {"train": train, "validation": (), "test": held_out}
    splits: dict[str, Any] = {}
    for split, rows in texts.items():
        columns: dict[str, Any] = {"row": range(1, len(rows) + 1), "text": rows, "label": [0] * len(rows)}
        if split == "train" and labels is not None:
            columns["label"] = labels
        if pairs is not None:
            columns["text_pair"] = pairs.get(split, ())
        schema = task_schema(pairs is not None)
        splits[split] = pa.table(
            [pa.array(columns[name], kind) for name, kind in zip(schema.names, schema.types, strict=True)],
            schema=schema,
        )
    return Task("t", ("a", "b"), "macro_f1", pairs is not None, "en", splits)


def regression_of(train: Sequence[str]) -> Task:
    """A task of regression."""
    plain, schema = task_of(train), task_schema(False, "pearson")
    splits = {split: table.cast(schema) for split, table in plain.splits.items()}
    return replace(plain, labels=("label",), metric="pearson", splits=splits)


def index_of(*texts: str) -> WordCountIndex:
    return WordCountIndex([Passage(f"p{n}", text, f"s{n % 2}") for n, text in enumerate(texts)])


def run(task: Task, index: WordCountIndex, folder: Path, seed: int = 0, **params: Any) -> dict[str, Any]:
    """Select from corpus 'docs' with the selection options `params`."""
    corpus, scratch = Corpus("docs", "v1", index), folder.with_suffix(".scratch")
    return select(task, corpus, Selection(**params), folder, seed=seed, scratch=scratch)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one file of a selection."""
    records: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return records


def ids(folder: Path) -> list[str]:
    """The ids of the selected passages, in order."""
    return [row["id"] for row in rows(folder, "passages")]
