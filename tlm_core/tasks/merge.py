"""Merge several tasks into one task, so that they share a tokenizer and a starting encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tlm_core.compression.params import MergeParams
from tlm_core.errors import InvalidRequest
from tlm_core.tasks.task import SPLITS, Task, task_schema
from tlm_core.training.stage import StageContext

MERGE = "merge.json"
TARGETS = "{split}.targets.npy"  # [rows of the merged split]: regression targets; NaN in rows of classification tasks


def merge_stage(ctx: StageContext[MergeParams]) -> dict[str, object]:
    """Write the merged task. Return `{"tasks": number}`. Inputs: `task.0`, `task.1`, …, in the order of `names`."""
    names = ctx.params.names
    merge([Task.read(ctx.inputs[f"task.{number}"]) for number in range(len(names))], names, ctx.out)
    return {"tasks": len(names)}


def merge(tasks: Sequence[Task], names: Sequence[str], out: Path) -> None:
    """Write one task with all rows and the labels `NAME: LABEL`, and `merge.json` with facts about each task.

    All rows of a regression task have one label; the files TARGETS contain their targets. If some tasks have pairs,
    the rows of the other tasks get a blank second text. A further test set (`test_NAME`) has the rows of all tasks with
    a test set of this name. Raises InvalidRequest if two tasks have the same name or different languages.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidRequest(f"Two datasets have the name '{repeated[0]}', so their labels clash. Rename one.")
    languages = {name: task.language for name, task in zip(names, tasks, strict=True)}
    if len(set(languages.values())) > 1:
        message = f"Tasks that share an encoder need one language, but have {languages}. Omit tasks of other languages."
        raise InvalidRequest(message)
    labels = [f"{name}: {label}" for name, task in zip(names, tasks, strict=True) for label in task.labels]
    offsets = np.cumsum([0, *(len(task.labels) for task in tasks)])[:-1].tolist()
    pair = any(task.pair for task in tasks)
    splits = {}
    for split in (*SPLITS, *sorted({name for task in tasks for name in task.further_tests})):
        members = [(task, offset) for task, offset in zip(tasks, offsets, strict=True) if split in task.splits]
        splits[split] = pa.concat_tables([_shifted(task, split, offset, pair) for task, offset in members])
        targets = [np.full(t.counts[split], np.nan) if t.type.has_classes else t.targets(split) for t, _ in members]
        np.save(out / TARGETS.format(split=split), np.concatenate(targets))
    Task(" + ".join(names), tuple(labels), "macro_f1", pair, tasks[0].language, splits).write(out)
    facts = [
        {"name": name, "offset": offset, "labels": task.labels, "metric": task.metric, "splits": list(task.counts)}
        for name, task, offset in zip(names, tasks, offsets, strict=True)
    ]
    (out / MERGE).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")


def _shifted(task: Task, split: str, offset: int, pair: bool) -> pa.Table:
    """Return the rows of a split in the schema of the merged task. offset: index of the task's first label there."""
    table = task.splits[split]
    labels = task.label_ids(split) if task.type.has_classes else np.zeros(len(table), np.int32)
    seconds = table["text_pair"] if task.pair else pa.array([""] * len(table), pa.string())
    columns = [table["row"], table["text"], *([seconds] if pair else []), pa.array(labels + offset, pa.int32())]
    return pa.table(columns, schema=task_schema(pair))
