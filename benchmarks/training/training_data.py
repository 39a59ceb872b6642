"""The tokenized text of all rivals, and the recipes of our engine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.report import remark
from benchmarks.shared import ROOT, shared_data, write_once
from tlm_core.corpus.passages import passage_id
from tlm_core.selection.output import PASSAGES, write_rows
from tlm_core.stages import PREPARE
from tlm_core.tasks.validate import load_task
from tlm_core.training.local import run_stage
from tlm_core.training.memory import ENVIRONMENT
from tlm_core.training.params import PrepareParams
from tlm_core.training.recipe import Recipe, native_precision, resolve

CACHE = ROOT / "build" / "bench" / "training"
VOCABULARY = 30_522
LENGTH = 128
BATCH = 32
# All rivals share this shape. Dropout is off, because it would slow the rivals more than us.
SHAPE = {"model.layers": 4, "model.hidden": 256, "model.heads": 4, "model.max_length": LENGTH, "model.dropout": 0.0}
COMMON = {
    **SHAPE,
    "model.windows": 1,  # the rivals truncate longer texts
    "model.init": "scratch",
    "tokenizer.vocab_size": VOCABULARY,
    "joint.batch_rows": BATCH,
    "joint.task_batch": BATCH,
    "joint.bag_of_words": False,  # the rivals have no such loss
    "joint.budget.steps": 1_000,
    "checkpoint_steps": 1_000_000,
}


def threads() -> int:
    """Return the number of threads of every rival: the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def precision() -> str:
    """Return "bf16", or "fp32" where the device does not compute bf16 natively."""
    # This import loads torch, which preparing text does not need.
    from tlm_core.training.device import native_bf16, pick_device

    device = pick_device()
    return native_precision() if device.type == "cpu" else "bf16" if native_bf16(device) else "fp32"


def environment() -> dict[str, str]:
    """Return the environment of a benchmark process: the settings of our training processes and a compile cache."""
    return {**plain_environment(), **ENVIRONMENT}


def plain_environment() -> dict[str, str]:
    """Return `environment()` without the settings of our training processes."""
    inherited = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    return {
        **inherited,
        "OMP_NUM_THREADS": str(threads()),
        "TORCHINDUCTOR_CACHE_DIR": str(CACHE / "compiled"),
        "TOKENIZERS_PARALLELISM": "false",
    }


def bert_recipe(**overrides: object) -> Recipe:
    """Return the published model and losses on our engine: BERT 4 x 256, 15 % masked, AdamW, ρ₁ = 999."""
    published = {"model.intermediate": 1024, "joint.rho1": 999, "joint.rho2": 20}
    return resolve("paper", "tiny", {**COMMON, **published, **overrides})


def fast_recipe(**overrides: object) -> Recipe:
    """Return recipe `fast` with depth and width of `bert_recipe`, and a narrower block for an equal parameter count."""
    return resolve("fast", "tiny", {**COMMON, "model.intermediate": 688, **overrides})


def corpus_passages(keep: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """Return the rows that `keep` selects in each file of the corpus: id (computed from the text), text and source."""
    paths = sorted((shared_data() / "corpus").glob("*.parquet"))
    passages = pa.concat_tables([keep(pq.read_table(path, columns=["id", "text", "source"])) for path in paths])
    return passages.set_column(0, "id", pa.array([passage_id(text) for text in passages["text"].to_pylist()]))


def example_passages() -> pa.Table:
    """Return the passages of the source `tlm_example`."""
    return corpus_passages(lambda table: table.filter(pc.equal(table["source"], "tlm_example")))


def write_selection(folder: Path, passages: pa.Table) -> Path:
    """Write the passages as a selection that the prepare stage reads."""
    folder.mkdir(parents=True, exist_ok=True)
    batches = (
        [batch["id"], batch["text"], batch["source"], [1] * len(batch), [1.0] * len(batch)]
        for batch in passages.to_batches(2_000)
    )
    write_rows(folder / "passages.parquet", PASSAGES, batches)
    return folder


def prepared() -> Path:
    """Return the cached prepare artifact of SciERC with the example passages."""

    def prepare(folder: Path) -> None:
        remark("preparing the text once")
        shutil.rmtree(CACHE / "scratch", ignore_errors=True)
        task, _ = load_task(shared_data() / "tasks" / "sciie")
        task.write(CACHE / "scratch" / "task")
        selection = write_selection(CACHE / "scratch" / "selection", example_passages())
        inputs = {"task": CACHE / "scratch" / "task", "selection": selection}
        run_stage(PREPARE, inputs, PrepareParams.of(bert_recipe()), folder)

    return write_once(CACHE / "prepared", prepare)
