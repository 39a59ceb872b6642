"""Tasks, selections, and the indexes of corpora. Each is written once below build/quality."""

from __future__ import annotations

import itertools
import json
import random
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
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.task import SPLITS, Task, task_schema
from tlm_core.tasks.validate import write_task

FOLDER = Path("build/quality")
LIBRARIES = "libraries"
_FEW, _SPLIT = "few-", "split-"
SOURCES_ROWS = 200_000  # train texts of the task `sources`
HELD_OUT = 4_000  # validation texts and test texts of the task `sources`
_BATCH = 4096


def task_folder(name: str) -> Path:
    """Return the `validate` artifact of a shared task or of a generated task."""
    if name == "sources":
        return write_once(FOLDER / "task" / f"sources-{SOURCES_ROWS}", _write_sources)
    options = DatasetOptions(name=name)  # `select_once` reads the name
    return write_once(FOLDER / "task" / name, lambda folder: write_task(text_folder(name), folder, options))


def text_folder(name: str) -> Path:
    """Return the folder with the rows of a task. name: a shared task, a generated task, or a result of `split_of`."""
    if name.startswith(_SPLIT):
        return write_once(FOLDER / name, partial(_write_split, name))
    return _generated(name) / "task" if _is_generated(name) else shared_data() / "tasks" / name


def few_labels(task: str, rows: int) -> str:
    """Return the name of a generated task with `rows` train rows of `task`. The other train texts are its corpus."""
    return f"{_FEW}{task}-{rows}"


def split_of(task: str, number: int) -> str:
    """Return the name of a task with the rows of `task` in random splits of the original sizes. number: random seed."""
    return f"{_SPLIT}{task}-{number}"


def _parse_split(name: str) -> tuple[str, int]:
    """Return the arguments of `split_of` from its result."""
    task, _, number = name.removeprefix(_SPLIT).rpartition("-")
    return task, int(number)


def _write_split(name: str, folder: Path) -> None:
    task, number = _parse_split(name)
    lines = {split: (text_folder(task) / f"{split}.jsonl").read_text(encoding="utf-8").splitlines() for split in SPLITS}
    rows = list(itertools.chain.from_iterable(lines.values()))
    random.Random(number).shuffle(rows)
    remaining = iter(rows)
    folder.mkdir()
    for split in SPLITS:
        part = itertools.islice(remaining, len(lines[split]))
        (folder / f"{split}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")


def _is_generated(name: str) -> bool:
    return name == LIBRARIES or name.startswith(_FEW)


def _generated(name: str) -> Path:
    """Return the folder with `task` and `corpus` of a generated task: `libraries`, or a task of `few_labels`."""
    if name == LIBRARIES:
        return write_once(FOLDER / name, lambda folder: generate_demo(folder, LARGE))
    task, _, rows = name.removeprefix(_FEW).rpartition("-")
    return write_once(FOLDER / name, lambda folder: _write_few(shared_data() / "tasks" / task, int(rows), folder))


def _write_few(source: Path, rows: int, folder: Path) -> None:
    for part in ("task", "corpus"):
        (folder / part).mkdir(parents=True)
    for split in ("validation", "test"):
        shutil.copy(source / f"{split}.jsonl", folder / "task")
    lines = (source / "train.jsonl").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    texts = [json.dumps({"text": json.loads(line)["text"]}) for line in lines[rows:]]
    (folder / "task" / "train.jsonl").write_text("\n".join(lines[:rows]), encoding="utf-8")
    (folder / "corpus" / "unlabeled.jsonl").write_text("\n".join(texts), encoding="utf-8")


def select_once(task: Path, params: Selection) -> Path:
    """Return the selection for a task from the shared corpus, or from the corpus that was generated with the task."""
    data = Task.read(task)
    source = _parse_split(data.name)[0] if data.name.startswith(_SPLIT) else data.name
    name = source if _is_generated(source) else "shared"
    files = [sha256_file(path) for path in sorted(task.glob("*.parquet"))]
    digest = digest_of([name, params.model_dump(mode="json"), files])

    def write(folder: Path) -> None:
        scratch = folder.with_suffix(".scratch")
        select(data, Corpus(name, "1", corpus_index(name)), params, folder, seed=0, scratch=scratch)
        shutil.rmtree(scratch, ignore_errors=True)

    return write_once(FOLDER / "selection" / digest[:12], write)


def corpus_index(name: str = "shared") -> TantivyIndex:
    """Open the index of a corpus: `shared`, or that of a generated task."""
    corpus = _generated(name) / "corpus" if _is_generated(name) else shared_data() / "corpus"
    return TantivyIndex.open(write_once(FOLDER / f"index-{name}", partial(_write_index, corpus)))


def _write_index(corpus: Path, folder: Path) -> None:
    index = TantivyIndex.create(folder, "en")
    passages = read_sources([str(corpus)])
    while batch := list(itertools.islice(passages, _BATCH)):
        index.add(batch)
    index.commit()
    index.close()


def _write_sources(folder: Path) -> None:
    """Write a large task. Its texts are passages of the shared corpus, and the label of a passage is its source.

    A limit on the texts of each source balances the labels. Raises NotFound if the corpus has too few passages.
    """
    paths = sorted((shared_data() / "corpus").glob("*.parquet"))
    passages = pa.concat_tables([pq.read_table(path, columns=["text", "source"]) for path in paths])
    names, source = np.unique(np.asarray(passages["source"].to_pylist()), return_inverse=True)
    needed, counts = SOURCES_ROWS + 2 * HELD_OUT, np.bincount(source)
    if counts.sum() < needed:
        raise NotFound(f"The task 'sources' needs {needed:,} passages, but the corpus has {counts.sum():,}. Add some.")
    limit = next(limit for limit in itertools.count(1) if np.minimum(counts, limit).sum() >= needed)
    used, positions = np.zeros(len(names), dtype=np.int64), []
    for position in np.random.default_rng(0).permutation(len(source)).tolist():
        used[source[position]] += 1
        if used[source[position]] <= limit:
            positions.append(position)
    validation, test, train = np.split(np.asarray(positions)[:needed], [HELD_OUT, 2 * HELD_OUT])
    splits = {}
    for name, rows_of in {"validation": validation, "test": test, "train": train}.items():
        labels = source[rows_of].astype(np.int32)
        columns = {"row": rows_of + 1, "text": passages["text"].take(rows_of), "label": labels}
        splits[name] = pa.table(columns, schema=task_schema(False))
    Task("sources", tuple(map(str, names)), "macro_f1", False, "en", splits).write(folder)
