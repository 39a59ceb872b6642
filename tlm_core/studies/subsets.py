"""Nested, stratified subsets of a task's train split, for learning curves (arXiv 2006.08671)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from tlm_core.errors import InvalidRequest
from tlm_core.json_files import read_json
from tlm_core.studies.params import SizesParams, SubsetParams
from tlm_core.tasks.task import Task
from tlm_core.training.stage import DROPPED, StageContext

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """A size of the curve."""

    size: float  # a share or a count, as in the request
    rows: int  # number of train rows in a subset of this size
    dropped: str | None  # the reason why the curve omits the size, or None


def sizes(ctx: StageContext[SizesParams]) -> dict[str, object]:
    """Write `sizes.json`, a list with the fields of a `Size` for each requested size. Return the number of sizes.

    Input: `task`. Raises InvalidRequest for sizes that `curve_sizes` rejects.
    """
    rows = [asdict(size) for size in curve_sizes(Task.read(ctx.inputs["task"]), ctx.params.sizes, ctx.params.seeds)]
    (ctx.out / "sizes.json").write_text(json.dumps(rows), encoding="utf-8")
    return {"sizes": len(rows)}


def subset(ctx: StageContext[SubsetParams]) -> dict[str, object]:
    """Write the task with a subset of its train split, and return the number of rows of the subset.

    If the size is dropped, write only `dropped.json`, and return the reason. Inputs: `task`, `sizes`.
    """
    sizes = read_json(ctx.inputs["sizes"] / "sizes.json")
    size = next(size for size in sizes if size["size"] == ctx.params.size)
    if size["dropped"]:
        (ctx.out / "dropped.json").write_text(json.dumps({"reason": size["dropped"]}), encoding="utf-8")
        return {DROPPED: size["dropped"]}
    first_rows(Task.read(ctx.inputs["task"]), size["rows"], ctx.params.seed).write(ctx.out)
    return {"rows": size["rows"]}


def stratified_order(labels: npt.NDArray[np.integer], seed: int) -> Ints:
    """Return all row numbers in an order whose every prefix is stratified. labels: the label id of each row.

    For each label, a seeded random order numbers its n rows k = 0 to n - 1. The result sorts all rows by (k + 1/2) / n.
    In a prefix of m rows, a label with the share s of all rows has s m ± (1/2 + s L / 2) rows, for L labels.
    """
    random = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[random.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((random.random(len(labels)), place)).astype(np.int64)


def rows_of(size: float, rows: int) -> int:
    """Return how many of the `rows` train rows a size requests. A size up to 1 is a share, a larger size is a count.

    Raises InvalidRequest for a count above `rows`.
    """
    count = max(1, round(size * rows)) if size <= 1 else int(size)
    if count > rows:
        raise InvalidRequest(
            f"The size {count} exceeds the {rows} texts of train. Use smaller sizes, or shares up to 1.", size=size
        )
    return count


def curve_sizes(task: Task, requested: Sequence[float], seeds: Sequence[int]) -> list[Size]:
    """Return a `Size` for each requested size, by ascending number of rows.

    A size is dropped if the subset of at least one seed lacks a label. A dropped size is in the list, with the reason.
    Raises InvalidRequest if train has fewer rows than a size, if two sizes have equally many rows, or if all sizes
    are dropped. Also raises InvalidRequest for a regression task, which has no accuracy.
    """
    if not task.type.has_classes:
        raise InvalidRequest(
            f"A learning curve needs a classification dataset, but '{task.name}' is a regression task. Use another one."
        )
    labels = task.label_ids("train")
    present = np.unique(labels)
    orders = [stratified_order(labels, seed) for seed in seeds]
    sizes: list[Size] = []
    for size in sorted(requested, key=lambda size: rows_of(size, len(labels))):
        rows = rows_of(size, len(labels))
        if sizes and rows == sizes[-1].rows:
            raise InvalidRequest(f"The sizes {sizes[-1].size:g} and {size:g} both have {rows} texts. Remove one.")
        missing = {int(label) for order in orders for label in np.setdiff1d(present, labels[order[:rows]])}
        names = ", ".join(f"'{task.labels[label]}'" for label in sorted(missing))
        sizes.append(Size(size, rows, f"{rows} texts include none with the label {names}" if missing else None))
    if all(size.dropped for size in sizes):
        raise InvalidRequest(
            f"No size includes texts of all labels. For example, {sizes[-1].dropped}. Use larger sizes."
        )
    return sizes


def first_rows(task: Task, rows: int, seed: int) -> Task:
    """Return the task with only the first `rows` rows of `stratified_order` in train, in the same order as before."""
    chosen = np.sort(stratified_order(task.label_ids("train"), seed)[:rows])
    return replace(task, splits={**task.splits, "train": task.splits["train"].take(chosen)})
