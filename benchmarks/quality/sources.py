"""A large task made from the corpus: which source has this passage?"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.shared import shared_data
from tlm_core.errors import NotFound
from tlm_core.tasks.task import Task, task_schema

SOURCES = 200_000
HELD_OUT = 4_000  # texts of validation and of test


def source_task(folder: Path, rows: int) -> Path:
    """Folder of the task with `rows` train texts, each source capped so that no few of them make up the whole.

    Raises NotFound if the corpus has fewer passages.
    """
    out = folder / f"sources-{rows}"
    if (out / "task.json").exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    tables = [
        pq.read_table(path, columns=["text", "source"]) for path in sorted((shared_data() / "corpus").glob("*.parquet"))
    ]
    passages = pa.concat_tables(tables)
    names, source = np.unique(np.asarray(passages["source"].to_pylist()), return_inverse=True)
    needed = rows + 2 * HELD_OUT
    counts = np.bincount(source)
    if counts.sum() < needed:
        raise NotFound(f"the corpus has {counts.sum():,} passages, {needed:,} are needed; ask for fewer rows")
    random = np.random.default_rng(0)
    order = random.permutation(len(source))
    seen = np.zeros(len(names), dtype=np.int64)
    cap = _cap(counts, needed)
    chosen = []
    for place in order.tolist():
        seen[source[place]] += 1
        if seen[source[place]] <= cap:
            chosen.append(place)
    places = np.asarray(chosen)[:needed]
    parts = {"validation": places[:HELD_OUT], "test": places[HELD_OUT : 2 * HELD_OUT], "train": places[2 * HELD_OUT :]}
    splits = {}
    for name, members in parts.items():
        columns = {
            "row": members + 1,
            "text": passages["text"].take(members),
            "label": source[members].astype(np.int32),
        }
        splits[name] = pa.table(columns, schema=task_schema(False))
    Task("sources", tuple(map(str, names)), "macro_f1", False, "en", splits).write(out)
    return out


def _cap(counts: np.ndarray, needed: int) -> int:
    """The smallest number of texts of each source with which `needed` are there."""
    low, high = 1, int(counts.max())
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if np.minimum(counts, middle).sum() >= needed else (middle + 1, high)
    return low
