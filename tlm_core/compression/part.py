"""Extract one task from a merged task, with the shared tokens."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np

from tlm_core.compression.params import PartParams
from tlm_core.tasks.merge import MERGE, TARGETS
from tlm_core.tasks.types import task_type_of
from tlm_core.training.prepared import Prepared
from tlm_core.training.stage import StageContext
from tlm_core.training.store import StoreWriter


def part(ctx: StageContext[PartParams]) -> dict[str, Any]:
    """The prepare artifact of one of the merged tasks, in the tokens of all. Parameter `number`: which one.

    Inputs: `prepared` and `task` of the merged task.
    """
    if ctx.rank:
        return {}
    whole, merged = Prepared(ctx.inputs["prepared"]), ctx.inputs["task"]
    facts = json.loads((merged / MERGE).read_text(encoding="utf-8"))[ctx.params.number]
    shutil.copytree(whole.folder / "tokenizer", ctx.out / "tokenizer")
    tokens, counts = {}, {}
    for name in facts["splits"]:
        split = whole.split(name)
        own = split.labels - facts["offset"]
        members = np.flatnonzero((own >= 0) & (own < len(facts["labels"])))
        with StoreWriter(ctx.out, name, whole.vocabulary.size) as store:
            store.add([split.store[int(member)].tolist() for member in members])
            tokens[name] = store.total
        classes = task_type_of(facts["metric"]).has_classes
        labels = own.astype(np.int32) if classes else np.load(merged / TARGETS.format(split=name))
        np.save(ctx.out / f"{name}.labels.npy", labels[members])
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
