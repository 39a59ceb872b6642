"""Measure tokenizing and packing on one core against bare `tokenizers`, and the memory of preparing text.

In the measurement of speed, the prepare stage uses a trained vocabulary, so that both sides only tokenize. Our time
includes packing the rows of one epoch. Memory is the peak of a process that runs the whole stage of recipe `fast`. This
stage also trains a vocabulary and counts word vectors.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.memory import peak_bytes
from benchmarks.report import alternate, figure, ratios
from benchmarks.shared import ROOT, program, result_of, write_once
from benchmarks.training.training_data import (
    CACHE,
    bert_recipe,
    corpus_passages,
    environment,
    prepared,
    write_selection,
)
from tlm_core.training.recipe import Recipe, resolve

SMALL, LARGE = 10_000, 80_000
# With this many passages, the start-up time of the stage is negligible.
TIMED = 30_000
BLOCK, REPEATS = 2_000, 3


def passages(count: int) -> pa.Table:
    """Return the first `count` passages of the shared corpus: id, text and source."""
    remaining = count

    def select_first(table: pa.Table) -> pa.Table:
        nonlocal remaining
        first = table[:remaining]
        remaining -= len(first)
        return first

    return corpus_passages(select_first)


def selection(count: int) -> Path:
    return write_once(CACHE / f"selection-{count}", lambda folder: write_selection(folder, passages(count)))


def stage(count: int, recipe: Recipe, folder: str) -> Path:
    """Run the prepare stage on `count` passages. Return its artifact, which is below `folder`."""
    from tlm_core.stages import PREPARE
    from tlm_core.training.local import run_stage
    from tlm_core.training.params import PrepareParams

    inputs = {"task": CACHE / "scratch" / "task", "selection": selection(count)}
    return run_stage(PREPARE, inputs, PrepareParams.of(recipe), Path(folder) / "prepared")


def stage_and_rows(count: int, recipe: Recipe) -> tuple[float, int]:
    """Run the prepare stage and pack one epoch. Return the total seconds and the number of prepared tokens."""
    from tlm_core.training.packing import PassageStream
    from tlm_core.training.prepared import Prepared
    from tlm_core.training.randomness import Stream, permutation

    with tempfile.TemporaryDirectory(prefix="tlm-bench-") as folder:
        start = time.perf_counter()
        prepared_text = Prepared(stage(count, recipe, folder))
        store = prepared_text.passages()
        assert store is not None
        stream = PassageStream(store, 128, lambda epoch: permutation(0, Stream.PASSAGES, epoch, len(store)))
        for first in range(0, len(store.tokens) // 128 - 32, 32):
            stream.rows(first, 32)
        return time.perf_counter() - start, sum(prepared_text.facts["tokens"].values())


def one_core() -> None:
    """In a child process: print the tokens per second of bare `tokenizers` and of our stage on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from tokenizers import Tokenizer

    from tlm_core.tasks.task import SPLITS, Task

    folder = prepared() / "tokenizer"
    task = Task.read(CACHE / "scratch" / "task")
    texts = [text for split in SPLITS for text in task.texts(split)]
    texts += pq.read_table(selection(TIMED) / "passages.parquet", columns=["text"])["text"].to_pylist()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def bare() -> float:
        start, tokens = time.perf_counter(), 0
        for begin in range(0, len(texts), BLOCK):
            tokens += sum(map(len, tokenizer.encode_batch_fast(texts[begin : begin + BLOCK])))
        return tokens / (time.perf_counter() - start)

    def ours() -> float:
        seconds, tokens = stage_and_rows(TIMED, bert_recipe(**{"tokenizer.source": str(folder)}))
        return tokens / seconds

    print(json.dumps(alternate({"bare": bare, "ours": ours}, REPEATS)))


def memory(count: int) -> None:
    """In a child process: print the peak resident memory of preparing `count` passages, in bytes."""
    with tempfile.TemporaryDirectory(prefix="tlm-bench-") as folder:
        stage(count, resolve("fast", "tiny"), folder)
    print(json.dumps(peak_bytes()))


def child(*arguments: str) -> Any:
    """Run this script in a child process with one thread, and return what it prints."""
    one_thread = environment() | {"RAYON_NUM_THREADS": "1"}
    return result_of(program("training.tokenizing", *arguments), cwd=ROOT, env=one_thread)


def compare() -> None:
    prepared()
    for count in (SMALL, TIMED, LARGE):  # prepared before the measurement
        selection(count)
    rates = child("rate")
    figure("tokens_per_second_bare_tokenizers", rates["bare"], unit="tokens/s")
    figure("tokenizing", ratios(rates["ours"], rates["bare"]), goal=0.8, unit="share of the bare rate")
    peaks = [child("memory", str(count)) for count in (SMALL, LARGE)]
    figure("prepare_peak_memory_small", peaks[:1], goal=1e9, better="lower", unit="bytes")
    figure("prepare_peak_memory", peaks[1:], goal=1e9, better="lower", unit="bytes")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["rate"]:
            one_core()
        case ["memory", count]:
            memory(int(count))
        case []:
            compare()
        case _:
            sys.exit(__doc__)
