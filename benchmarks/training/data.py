"""The text that all rivals train on, tokenised once, and the recipes that give our loop their shape."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.report import remark
from benchmarks.shared import ROOT, shared_data
from tlm_core.corpus.passages import passage_id
from tlm_core.selection.output import PASSAGES, RowWriter
from tlm_core.stages import PREPARE
from tlm_core.tasks.validate import load_task
from tlm_core.training.local import run_stage
from tlm_core.training.params import PrepareParams
from tlm_core.training.process import ENVIRONMENT
from tlm_core.training.recipe import Recipe, resolve

CACHE = ROOT / "build" / "bench" / "training"
VOCABULARY = 30_522
LENGTH = 128
BATCH = 32
# What must be the same on both sides of a row. Dropout is off everywhere: it costs the rivals more than us.
SHAPE = {"model.layers": 4, "model.hidden": 256, "model.heads": 4, "model.max_length": LENGTH, "model.dropout": 0.0}
COMMON = {
    **SHAPE,
    "model.init": "scratch",
    "tokenizer.vocab_size": VOCABULARY,
    "joint.batch_rows": BATCH,
    "joint.task_batch": BATCH,
    "joint.budget.steps": 1_000,
    "checkpoint_steps": 1_000_000,
}


def threads() -> int:
    """Threads of every rival: the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def precision() -> str:
    """What all rivals are given beside fp32: "bf16", or "fp32" where the device has no instructions for it."""
    from tlm_core.training.device import pick_device, resolved_precision  # torch, which preparing text does without

    return resolved_precision("auto", pick_device())


def environment() -> dict[str, str]:
    """What each process of a benchmark is started with: the stack's own settings, and a kept compile cache."""
    return {**plain_environment(), **ENVIRONMENT}


def plain_environment() -> dict[str, str]:
    """The same without what the stack sets for its own training processes."""
    given = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    return {
        **given,
        "OMP_NUM_THREADS": str(threads()),
        "TORCHINDUCTOR_CACHE_DIR": str(CACHE / "compiled"),
        "TOKENIZERS_PARALLELISM": "false",
    }


def bert_recipe(**more: object) -> Recipe:
    """The published model and losses on our engine: BERT 4 x 256, 15 % masked, AdamW, one task batch in 1,000."""
    own = {"model.intermediate": 1024, "joint.rho1": 999, "joint.rho2": 20}
    return resolve("paper", "tiny", {**COMMON, **own, **more})


def fast_recipe(**more: object) -> Recipe:
    """Recipe `fast` at the same layers and width; the gated block is narrower, so that parameters are as many."""
    return resolve("fast", "tiny", {**COMMON, "model.intermediate": 688, **more})


def example_passages() -> pa.Table:
    """Columns id, text, source: the passages of the corpus whose source is `tlm_example`."""
    tables = []
    for path in sorted((shared_data() / "corpus").glob("*.parquet")):
        table = pq.read_table(path, columns=["id", "text", "source"])
        tables.append(table.filter(pc.equal(table["source"], "tlm_example")))
    found = pa.concat_tables(tables)
    ids = pa.array([passage_id(text) for text in found["text"].to_pylist()])
    return found.set_column(0, "id", ids)


def write_selection(folder: Path, passages: pa.Table) -> Path:
    """The passages as a given selection: what the prepare stage reads."""
    folder.mkdir(parents=True, exist_ok=True)
    with RowWriter(folder / "passages.parquet", PASSAGES) as rows:
        for batch in passages.to_batches(2_000):
            columns = (batch[name] for name in ("id", "text", "source"))
            rows.write(*columns, [1] * len(batch), [1.0] * len(batch))
    return folder


def prepared() -> Path:
    """The prepare artifact of SciERC with the example passages and an own vocabulary; made once, kept under build/."""
    folder = CACHE / "prepared"
    if (folder / "data.json").exists():
        return folder
    remark("preparing the text: vocabulary of 30,522, token stores (once)")
    shutil.rmtree(CACHE / "making", ignore_errors=True)
    task, _ = load_task(shared_data() / "tasks" / "sciie")
    task.write(CACHE / "making" / "task")
    selection = write_selection(CACHE / "making" / "selection", example_passages())
    inputs = {"task": CACHE / "making" / "task", "selection": selection}
    made = run_stage(PREPARE, inputs, PrepareParams.of(bert_recipe()), CACHE / "making" / "prepared")
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
    return folder
