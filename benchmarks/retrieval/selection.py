"""Measure the memory of a selection for a task of 50,000 rows, in its own process.

Without arguments the script starts OpenSearch and runs itself with URL FOLDER ROWS. That process selects and prints
{"passages", "seconds", "peak_bytes"}.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import peak_bytes
from benchmarks.report import figure, remark
from benchmarks.retrieval.retrieval_data import TOP_K, build_index, opensearch, passages, recombined
from benchmarks.shared import program, result_of
from services.retriever.cluster import connect
from services.retriever.indexes import CorpusKey, OpenSearchIndexes

_ROWS = 50_000
_CORPUS = CorpusKey("bench", "selection", "v1")


def main() -> None:
    with opensearch() as (url, _, indexes), tempfile.TemporaryDirectory() as folder:
        real = passages()
        build_index(indexes, _CORPUS, real)
        _write_task(Path(folder) / "task", [p.text for p in recombined(real, _ROWS, seed=1)])
        del real
        selection = result_of(program("retrieval.selection", url, folder, _ROWS))
    figure(f"selection_memory_{_ROWS}_rows", [selection["peak_bytes"] / 1e6], unit="MB", goal=500, better="lower")
    figure(f"selection_seconds_{_ROWS}_rows", [selection["seconds"]], unit="s", better="lower")


def _write_task(folder: Path, texts: list[str]) -> None:
    import pyarrow as pa

    from tlm_core.tasks.task import Task, task_schema

    schema = task_schema(False)
    rows = pa.table([range(1, len(texts) + 1), texts, [n % 2 for n in range(len(texts))]], schema=schema)
    splits = {"train": rows, "validation": rows[:200], "test": rows[200:400]}
    Task("recombined", ("a", "b"), "macro_f1", False, "en", splits).write(folder)


def _select(url: str, folder: Path) -> None:
    from tlm_core.selection.interface import Corpus
    from tlm_core.selection.select import select
    from tlm_core.selection.selectors import Selection
    from tlm_core.tasks.task import Task

    cluster = connect(url)
    index = OpenSearchIndexes(cluster, shards=1).open(_CORPUS)
    start = reported = time.perf_counter()

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal reported
        if time.perf_counter() - reported > 10:
            reported = time.perf_counter()
            remark(f"{done} of {total} {unit}, {done / (reported - start):.0f}/s")

    facts = select(
        Task.read(folder / "task"),
        Corpus("selection", "v1", index),
        Selection(selector="bm25", top_k=TOP_K),
        folder / "selected",
        seed=0,
        scratch=folder / "parts",
        progress=progress,
    )
    seconds = time.perf_counter() - start
    print(json.dumps({"passages": facts["passages"], "seconds": seconds, "peak_bytes": peak_bytes()}))
    cluster.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _select(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
