"""Several tasks as one, so that they share tokens and a starting encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tlm_core.errors import InvalidRequest
from tlm_core.tasks.task import SPLITS, Task, task_schema

MERGE = "merge.json"


def merge(tasks: Sequence[Task], names: Sequence[str], out: Path) -> None:
    """Write one task that holds all rows, each label as `name: label`, and which labels are whose.

    Raises InvalidRequest if two tasks have one name, so that their labels would clash, or if single texts and pairs
    or several languages meet.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"two of the tasks are called '{twice[0]}', so their labels clash; rename one data set")
    for what, values in (("texts", [t.pair for t in tasks]), ("languages", [t.language for t in tasks])):
        if len(set(values)) > 1:
            told = dict(zip(names, values, strict=True))
            raise InvalidRequest(f"tasks that share an encoder need the same kind of {what}; got {told}")
    labels = [f"{name}: {label}" for name, task in zip(names, tasks, strict=True) for label in task.labels]
    offsets = np.cumsum([0, *(len(task.labels) for task in tasks)])[:-1].tolist()
    schema = task_schema(tasks[0].pair)
    splits = {}
    for split in SPLITS:
        parts = []
        for task, offset in zip(tasks, offsets, strict=True):
            table = task.splits[split]
            shifted = pa.array(task.label_ids(split) + offset, pa.int32())
            parts.append(table.set_column(table.schema.get_field_index("label"), "label", shifted).cast(schema))
        splits[split] = pa.concat_tables(parts)
    Task(" + ".join(names), tuple(labels), "macro_f1", tasks[0].pair, tasks[0].language, splits).write(out)
    facts = [
        {"name": name, "offset": offset, "labels": list(task.labels), "metric": task.metric}
        for name, task, offset in zip(names, tasks, offsets, strict=True)
    ]
    (out / MERGE).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
