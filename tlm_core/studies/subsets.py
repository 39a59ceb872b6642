"""Nested, stratified subsets of a task's train split, for learning curves (arXiv 2006.08671)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tlm_core.errors import InvalidRequest
from tlm_core.stages import DROPPED
from tlm_core.studies.params import SizesParams, SubsetParams
from tlm_core.tasks.task import Task
from tlm_core.training.stage import StageContext

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """One size of the curve. asked: as in the request. rows: labeled texts. dropped: the reason if it is dropped."""

    asked: float
    rows: int
    dropped: str | None


def sizes(ctx: StageContext[SizesParams]) -> dict[str, Any]:
    """Write `sizes.json`: the rows of each size of a learning curve, and which sizes are dropped, and why.

    Input: `task`. Raises InvalidRequest where `curve_sizes` does.
    """
    rows = [asdict(size) for size in curve_sizes(Task.read(ctx.inputs["task"]), ctx.params.sizes, ctx.params.seeds)]
    (ctx.out / "sizes.json").write_text(json.dumps(rows), encoding="utf-8")
    return {"sizes": len(rows)}


def subset(ctx: StageContext[SubsetParams]) -> dict[str, Any]:
    """Write the task with a part of its train split, or `dropped.json` if the size is dropped.

    Inputs: `task`, `sizes`.
    """
    sizes = json.loads((ctx.inputs["sizes"] / "sizes.json").read_text(encoding="utf-8"))
    size = next(size for size in sizes if size["asked"] == ctx.params.size)
    if size["dropped"]:
        (ctx.out / "dropped.json").write_text(json.dumps({"reason": size["dropped"]}), encoding="utf-8")
        return {DROPPED: size["dropped"]}
    first_rows(Task.read(ctx.inputs["task"]), size["rows"], ctx.params.seed).write(ctx.out)
    return {"rows": size["rows"]}


def order(labels: npt.NDArray[np.integer[Any]], seed: int) -> Ints:
    """Return an order of all rows in which every prefix is stratified.

    Row k of the n rows with a label, in a seeded order, gets the position (k + 1/2) / n. With L labels, a prefix
    deviates from the exact share s of a label by at most 1/2 + s L / 2 rows.
    """
    random = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[random.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    found: Ints = np.lexsort((random.random(len(labels)), place)).astype(np.int64)
    return found


def rows_of(asked: float, rows: int) -> int:
    """Return the rows of a size: a share up to 1, else a count. Raises InvalidRequest if train has fewer rows."""
    wanted = max(1, round(asked * rows)) if asked <= 1 else int(asked)
    if wanted > rows:
        raise InvalidRequest(
            f"a subset of {wanted} labelled texts was asked for, but train has {rows}; give smaller sizes or shares",
            asked=asked,
        )
    return wanted


def curve_sizes(task: Task, asked: Sequence[float], seeds: Sequence[int]) -> list[Size]:
    """Each size in rising order, with the reason where a class that train has would vanish for some seed.

    Raises InvalidRequest if train has fewer rows than asked for, two sizes are the same, or none is left, and for
    regression tasks, which have no accuracy.
    """
    if not task.type.has_classes:
        raise InvalidRequest(
            f"A learning curve needs a task with classes. The task '{task.name}' is a regression task."
        )
    labels = task.label_ids("train")
    present = np.unique(labels)
    orders = [order(labels, seed) for seed in seeds]
    found: list[Size] = []
    for one in sorted(asked, key=lambda size: rows_of(size, len(labels))):
        rows = rows_of(one, len(labels))
        if found and rows == found[-1].rows:
            raise InvalidRequest(f"the sizes {found[-1].asked:g} and {one:g} both mean {rows} texts; leave one out")
        gone = {int(label) for way in orders for label in np.setdiff1d(present, labels[way[:rows]])}
        names = ", ".join(f"'{task.labels[label]}'" for label in sorted(gone))
        found.append(Size(one, rows, f"with {rows} texts no text of {names} is left" if gone else None))
    if all(size.dropped for size in found):
        raise InvalidRequest(f"every size loses a class ({found[-1].dropped}); give larger sizes")
    return found


def first_rows(task: Task, rows: int, seed: int) -> Task:
    """Return the task with the first `rows` of `order` as its train split, sorted as before."""
    chosen = np.sort(order(task.label_ids("train"), seed)[:rows])
    return replace(task, splits={**task.splits, "train": task.splits["train"].take(chosen)})
