"""Several tasks as one, so that they share tokens and a starting encoder, and the way back to each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tlm_core.errors import InvalidRequest
from tlm_core.tasks.task import SPLITS, Task, task_schema
from tlm_core.training.prepared import Prepared
from tlm_core.training.stage import StageContext
from tlm_core.training.store import StoreWriter

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


def part(ctx: StageContext) -> dict[str, Any]:
    """The prepare artifact of one of the merged tasks, in the tokens of all. Parameter `number`: which one.

    Inputs: `prepared` and `task` of the merged task.
    """
    if ctx.rank:
        return {}
    whole = Prepared(ctx.inputs["prepared"])
    facts = json.loads((ctx.inputs["task"] / MERGE).read_text(encoding="utf-8"))[ctx.params["number"]]
    shutil.copytree(whole.folder / "tokenizer", ctx.out / "tokenizer")
    tokens, counts = {}, {}
    for name in SPLITS:
        split = whole.split(name)
        own = split.labels - facts["offset"]
        members = np.flatnonzero((own >= 0) & (own < len(facts["labels"])))
        with StoreWriter(ctx.out, name, whole.vocabulary.size) as store:
            store.add([split.store[int(member)].tolist() for member in members])
            tokens[name] = store.total
        np.save(ctx.out / f"{name}.labels.npy", own[members].astype(np.int32))
        np.save(ctx.out / f"{name}.rows.npy", split.rows[members])
        if split.second is not None:
            np.save(ctx.out / f"{name}.second.npy", split.second[members])
        counts[name] = len(members)
    nothing = {"flops": 0.0, "tokens": 0.0, "seconds": 0.0, "gpu_seconds": 0.0}
    own_facts = {"labels": facts["labels"], "metric": facts["metric"], "task": facts["name"], "cost": nothing}
    told = {**whole.facts, **own_facts, "tokens": tokens, "counts": counts, "passages": 0}
    (ctx.out / "data.json").write_text(json.dumps(told, ensure_ascii=False, indent=1), encoding="utf-8")
    for counted in ("log_frequency.npy", "vectors.npy"):
        if (whole.folder / counted).exists():
            shutil.copyfile(whole.folder / counted, ctx.out / counted)
    return {"rows": counts}
