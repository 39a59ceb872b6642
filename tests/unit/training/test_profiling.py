"""`profile: true` writes a trace and does not change the weights."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from tests.unit.training.made import made_prepared, made_selection, made_task, run_chain, tiny, trainer_of
from tlm_core.stages import JOINT
from tlm_core.training.local import run_stage
from tlm_core.training.params import FinetuneParams, JointParams, PrepareParams
from tlm_core.training.profiling import STEPS, WARM, traced


def test_exported_model_has_a_trace_of_each_training_stage(tmp_path: Path) -> None:
    recipe = tiny(profile=True, joint__budget__steps=WARM + STEPS + 2, finetune__max_steps=WARM + 2, finetune__batch=4)
    selection = made_selection(tmp_path / "selection", 40)
    done = run_chain(made_task(tmp_path / "task", (24, 12, 12)), selection, recipe, [0], tmp_path / "work")
    counts = {}
    for stage in ("joint", "finetune"):
        with gzip.open(done["export"] / f"trace-{stage}.json.gz", "rt") as file:
            events = json.load(file)["traceEvents"]
        counts[stage] = sum(event.get("name") == "aten::embedding_dense_backward" for event in events)
    assert counts["joint"] >= STEPS
    assert 0 < counts["finetune"] < counts["joint"]


def test_profiling_does_not_change_weights(tmp_path: Path) -> None:
    plain, profiled = tiny(precision="fp32"), tiny(precision="fp32", profile=True)
    prepared = {"prepared": made_prepared(tmp_path, plain)}
    first = run_stage(JOINT, prepared, JointParams.of(plain, 0), tmp_path / "plain")
    second = run_stage(JOINT, prepared, JointParams.of(profiled, 0), tmp_path / "profiled")
    assert not list(first.glob("trace-*")) and list(second.glob("trace-*"))
    weights = [load_file(folder / "model.safetensors") for folder in (first, second)]
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])


def test_profiling_changes_only_artifact_ids_of_training_stages() -> None:
    plain, profiled = tiny(), tiny(profile=True)
    assert PrepareParams.of(plain) == PrepareParams.of(profiled)
    assert JointParams.of(plain, 0) != JointParams.of(profiled, 0)
    assert FinetuneParams.of(plain, 0) != FinetuneParams.of(profiled, 0)


def test_only_rank_zero_writes_a_trace(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, WARM + STEPS + 1, profile=True)
    trainer.ctx = replace(trainer.ctx, rank=1)
    before = trainer.before_step
    with traced(trainer, "joint"):
        assert trainer.before_step is before
    assert not list(tmp_path.glob("trace-*"))
