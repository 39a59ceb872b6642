"""Memory of a whole selection for a task of 50,000 rows, in a process of its own.

python -m benchmarks.retrieval.selection                     starts OpenSearch, and itself once more as below
python -m benchmarks.retrieval.selection URL FOLDER ROWS     selects; prints {"passages", "seconds", "peak_bytes"}
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import peak_bytes
from benchmarks.report import figure, remark
from benchmarks.retrieval.retrieval_data import TOP_K, fill, opensearch, passages, program, recombined
from services.retriever.cluster import connect
from services.retriever.indexes import CorpusKey, OpenSearchIndexes

_ROWS = 50_000


def main() -> None:
    with opensearch() as (url, _, places), tempfile.TemporaryDirectory() as made:
        real = passages()
        fill(places, "selection", real)
        _write_task(Path(made) / "task", [p.text for p in recombined(real, _ROWS, seed=1)])
        del real
        done = subprocess.run(program("selection", url, made, _ROWS), stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout)
    figure(f"selection_memory_{_ROWS}_rows", [told["peak_bytes"] / 1e6], unit="MB", goal=500, better="lower")
    figure(f"selection_seconds_{_ROWS}_rows", [told["seconds"]], unit="s", better="lower")


def _write_task(folder: Path, texts: list[str]) -> None:
    import pyarrow as pa

    from tlm_core.tasks.task import Task, task_schema

    schema = task_schema(False)
    rows = pa.table([range(1, len(texts) + 1), texts, [n % 2 for n in range(len(texts))]], schema=schema)
    splits = {"train": rows, "validation": rows[:200], "test": rows[200:400]}
    Task("made", ("a", "b"), "macro_f1", False, "en", splits).write(folder)


def _select(url: str, folder: Path) -> None:
    from tlm_core.selection.interface import Corpus
    from tlm_core.selection.select import select
    from tlm_core.selection.selectors import Selection
    from tlm_core.tasks.task import Task

    cluster = connect(url)
    index = OpenSearchIndexes(cluster, shards=1).open(CorpusKey("bench", "selection", "v1"))
    began = told = time.perf_counter()

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal told
        if time.perf_counter() - told > 10:
            told = time.perf_counter()
            remark(f"{done} of {total} {unit}, {done / (told - began):.0f}/s")

    facts = select(
        Task.read(folder / "task"),
        Corpus("selection", "v1", index),
        Selection(selector="bm25", top_k=TOP_K),
        folder / "selected",
        seed=0,
        scratch=folder / "parts",
        progress=progress,
    )
    seconds = time.perf_counter() - began
    print(json.dumps({"passages": facts["passages"], "seconds": seconds, "peak_bytes": peak_bytes()}))
    cluster.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _select(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
