"""Tasks, indexes of corpora and selections. Each is written once below build/quality."""

from __future__ import annotations

import itertools
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.shared import shared_data, write_once
from tlm_client.demo_data import LARGE, generate_demo
from tlm_core.artifacts import digest_of, sha256_file
from tlm_core.corpus.read import read_sources
from tlm_core.errors import NotFound
from tlm_core.selection.interface import Corpus
from tlm_core.selection.select import select
from tlm_core.selection.selectors import Selection
from tlm_core.selection.tantivy_index import TantivyIndex
from tlm_core.tasks.task import Task, task_schema
from tlm_core.tasks.validate import write_task

FOLDER = Path("build/quality")
LIBRARIES = "libraries"
SOURCES_ROWS = 200_000
HELD_OUT = 4_000  # validation texts and test texts of the task `sources`
_BATCH = 4096


def task_folder(name: str, rows: int = SOURCES_ROWS) -> Path:
    """Return the `validate` artifact of a shared task, or of `sources` with `rows` train texts."""
    if name == "sources":
        return write_once(FOLDER / "task" / f"sources-{rows}", lambda folder: _write_sources(folder, rows))
    return write_once(FOLDER / "task" / name, lambda folder: write_task(text_folder(name), folder))


def text_folder(name: str) -> Path:
    """Return the folder with the texts of a shared task, or of `libraries`, which needs no shared data."""
    return _libraries() / "task" if name == LIBRARIES else shared_data() / "tasks" / name


def _libraries() -> Path:
    """Return the folder with the 15 labels of `libraries` and their corpus."""
    return write_once(FOLDER / LIBRARIES, lambda folder: generate_demo(folder, size=LARGE, progress=lambda *_: None))


def select_once(task: Path, params: Selection) -> Path:
    """Return the selection for a task from its corpus: the shared one, except for `libraries`."""
    digest = digest_of([params.model_dump(mode="json"), [sha256_file(path) for path in sorted(task.glob("*.parquet"))]])

    def write(folder: Path) -> None:
        scratch = folder.with_suffix(".scratch")
        data = Task.read(task)
        name = LIBRARIES if data.name == LIBRARIES else "shared"
        select(data, Corpus(name, "1", corpus_index(name)), params, folder, seed=0, scratch=scratch)
        shutil.rmtree(scratch, ignore_errors=True)

    return write_once(FOLDER / "selection" / digest[:12], write)


def corpus_index(name: str = "shared") -> TantivyIndex:
    """Open the index of a corpus, `shared` or `libraries`."""
    corpus = _libraries() / "corpus" if name == LIBRARIES else shared_data() / "corpus"
    return TantivyIndex.open(write_once(FOLDER / f"index-{name}", partial(_write_index, corpus)))


def _write_index(corpus: Path, folder: Path) -> None:
    index = TantivyIndex.create(folder, "en")
    passages = read_sources([str(corpus)])
    while batch := list(itertools.islice(passages, _BATCH)):
        index.add(batch)
    index.commit()
    index.close()


def _write_sources(folder: Path, rows: int) -> None:
    """Write a large task: which source of the corpus does this passage come from?

    A limit on the texts of each source balances the labels. Raises NotFound if the corpus has too few passages.
    """
    paths = sorted((shared_data() / "corpus").glob("*.parquet"))
    passages = pa.concat_tables([pq.read_table(path, columns=["text", "source"]) for path in paths])
    names, source = np.unique(np.asarray(passages["source"].to_pylist()), return_inverse=True)
    needed, counts = rows + 2 * HELD_OUT, np.bincount(source)
    if counts.sum() < needed:
        raise NotFound(f"The corpus has {counts.sum():,} passages; {needed:,} are needed. Choose fewer rows.")
    limit = next(limit for limit in itertools.count(1) if np.minimum(counts, limit).sum() >= needed)
    used, positions = np.zeros(len(names), dtype=np.int64), []
    for position in np.random.default_rng(0).permutation(len(source)).tolist():
        used[source[position]] += 1
        if used[source[position]] <= limit:
            positions.append(position)
    validation, test, train = np.split(np.asarray(positions)[:needed], [HELD_OUT, 2 * HELD_OUT])
    splits = {}
    for name, rows_of in {"validation": validation, "test": test, "train": train}.items():
        columns = {
            "row": rows_of + 1,
            "text": passages["text"].take(rows_of),
            "label": source[rows_of].astype(np.int32),
        }
        splits[name] = pa.table(columns, schema=task_schema(False))
    Task("sources", tuple(map(str, names)), "macro_f1", False, "en", splits).write(folder)
