"""Generated small tasks, selections, prepared data, and trainers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tlm_core.jobs.spec import KindOptions, PlanInputs
from tlm_core.kinds import train
from tlm_core.stages import PREPARE
from tlm_core.tasks.task import Task, task_schema
from tlm_core.training.encoder_stages import joint_trainer
from tlm_core.training.local import LocalCheckpoints, LocalReporter, run_stage
from tlm_core.training.loop import Trainer
from tlm_core.training.params import JointParams, PrepareParams
from tlm_core.training.recipe import Recipe, resolve
from tlm_core.training.stage import StageContext

LABELS = ("red", "green", "blue")
COMMON = [f"common{i}" for i in range(50)]
TELLING = [[f"{label}{i}" for i in range(20)] for label in LABELS]
TINY: Mapping[str, Any] = {
    "tokenizer.vocab_size": 300,
    "model.init": "scratch",
    "model.layers": 2,
    "model.hidden": 32,
    "model.heads": 2,
    "model.intermediate": 48,
    "model.max_length": 48,
    "joint.batch_rows": 8,
    "joint.task_batch": 8,
    "joint.budget.steps": 12,
    "joint.bag_of_words": "auto",
    "finetune.epochs": 2,
    "finetune.batch": 16,
    "finetune.evaluations": 3,
}


def tiny(**more: Any) -> Recipe:
    """Return a recipe that trains in seconds, with overrides; `__` stands for a dot."""
    return resolve("fast", "tiny", {**TINY, **{key.replace("__", "."): value for key, value in more.items()}})


def made_task(
    folder: Path, counts: tuple[int, int, int] = (60, 24, 30), *, pair: bool = False, longest: int = 30
) -> Path:
    """Write a task whose texts are common words, a third of them replaced by words of the label."""
    random = np.random.default_rng(0)

    def text(label: int) -> str:
        words = [TELLING[label] if random.random() < 0.3 else COMMON for _ in range(random.integers(5, longest))]
        return " ".join(random.choice(choices) for choices in words)

    splits = {}
    for name, count in zip(("train", "validation", "test"), counts, strict=True):
        labels = random.integers(0, len(LABELS), count)
        columns = {
            "row": np.arange(1, count + 1),
            "text": [text(label) for label in labels],
            "label": labels.astype(np.int32),
        }
        if pair:
            columns["text_pair"] = [text(label) for label in labels]
        splits[name] = pa.table(columns, schema=task_schema(pair))
    Task("made", LABELS, "macro_f1", pair, "en", splits).write(folder)
    return folder


def made_selection(folder: Path, count: int = 150) -> Path:
    random = np.random.default_rng(1)
    words = [*COMMON, *(word for group in TELLING for word in group)]
    texts = [" ".join(random.choice(words, random.integers(3, 90))) for _ in range(count)]
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "id": [hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts],
            "text": texts,
            "source": ["made"] * count,
            "rank": pa.array([1] * count, pa.int32()),
            "score": pa.array([1.0] * count, pa.float32()),
        }
    )
    pq.write_table(table, folder / "passages.parquet")
    (folder / "selection.json").write_text(json.dumps({"passages": count}))
    return folder


def run_chain(
    task: Path, selection: Path | None, recipe: Recipe, seeds: Iterable[int], workdir: Path
) -> dict[str, Path]:
    """Run the stages of a `train` job after the selection. Return the folder of each node.

    selection: None trains on the task alone.
    """
    done = {"validate": task} | ({"select": selection} if selection else {})
    corpus = "local@1" if selection else None
    for node in train.plan(PlanInputs(KindOptions(), recipe, tuple(seeds), (), (), corpus)).nodes:
        if node.name in done:
            continue
        inputs = {name: done[source] for name, source in node.inputs.items()}
        done[node.name] = run_stage(node.stage, inputs, node.params, workdir / node.name)
    return done


def report_of(done: Mapping[str, Path]) -> dict:
    """Return the report of a chain of stages."""
    return json.loads((done["evaluate"] / "report.json").read_text())


def made_prepared(folder: Path, recipe: Recipe, *, pair: bool = False, alone: bool = False) -> Path:
    """Run the prepare stage on a generated task, with passages unless `alone`."""
    inputs = {"task": made_task(folder / "task", pair=pair)}
    if not alone:
        inputs["selection"] = made_selection(folder / "selection")
    return run_stage(PREPARE, inputs, PrepareParams.of(recipe), folder / "prepared")


def trainer_of(
    folder: Path,
    steps: int = 10,
    *,
    clock: Callable[[], float] = lambda: 0.0,
    checkpoints: LocalCheckpoints | None = None,
    **over: Any,
) -> Trainer:
    """Return a joint stage of `steps` steps on generated data, in float32. `over`: recipe overrides."""
    budget = {} if any("budget" in key for key in over) else {"joint__budget__steps": steps}
    recipe = tiny(**{"precision": "fp32", "checkpoint_steps": 1000, **budget, **over})
    prepared = made_prepared(folder / "data", recipe)
    context = StageContext(
        inputs={"prepared": prepared},
        params=JointParams.of(recipe, 0),
        out=folder,
        report=LocalReporter(),
        checkpoints=checkpoints or LocalCheckpoints(folder / "checkpoints"),
        scratch=folder,
    )
    trainer = joint_trainer(context)
    trainer.clock = clock
    return trainer


def scattered(trainer: Trainer) -> Trainer:
    """Add noise to all weights, equal on each device. Layers that start at zero would hide errors in attention."""
    draw, size = torch.Generator().manual_seed(0), 0.75 * trainer.model.shape.hidden**-0.5
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_((size * torch.randn(parameter.shape, generator=draw)).to(parameter.device))
    trainer.optimizer.refresh()
    return trainer


def compare(points: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], tolerance: float) -> None:
    """Compare losses and gradient norms of runs. Losses may be close although gradients differ."""
    assert [point["step"] for point in points] == [point["step"] for point in expected]
    for term, relative in (("mlm", tolerance), ("task", tolerance), ("gradient_norm", 2 * tolerance)):
        values, wanted = ([point[term] or 0.0 for point in of] for of in (points, expected))
        assert values == pytest.approx(wanted, rel=relative), term
