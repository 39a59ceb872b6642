"""`make bench-gpu` on a machine without a GPU, and its parts that need none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.training import gpu
from tlm_core.training.recipe import Budget, resolve

CPU = torch.device("cpu")


def test_each_line_has_the_reason_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines = list(gpu.lines())
    names = [f"gpu_{m}_{n}_{f}" for m in gpu.MODELS for n in (128, 512) for f in ("eager", "compiled")]
    assert [line["name"] for line in lines] == names
    assert [line["tokens_in_a_step"] for line in lines[::4]] == [65_536, 65_536, 4_096]
    assert all(line["reason"] == "no GPU on this machine" and "mfu" not in line for line in lines)


def test_both_models_have_the_size_of_bert_base() -> None:
    for model in ("ours", "published"):
        recipe = gpu.recipe(model, 512, 32_768)
        assert (recipe.model.layers, recipe.model.hidden, recipe.joint.batch_rows) == (12, 768, 64)
        assert recipe.number_format == "bf16" and recipe.model.dropout == 0


def test_small_model_is_the_preset() -> None:
    small, measured = resolve("fast", "small"), gpu.recipe("fast_small", 128, gpu.SMALL_TOKENS)
    for key in ("layers", "hidden", "heads", "intermediate"):
        assert getattr(measured.model, key) == getattr(small.model, key)
    assert measured.joint.batch_rows == small.joint.batch_rows


def test_measured_loop_trains_and_counts_launched_flops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"model.layers": 2, "model.hidden": 32, "model.heads": 2, "model.intermediate": 48, "model.max_length": 64}
    recipe = resolve("fast", "tiny", {**sizes, "joint.batch_rows": 4, "precision": "fp32", "checkpoint_steps": 100})
    trainer = gpu.trainer(recipe, 64, tmp_path, compiled=False, device=CPU)
    trainer.budget = Budget(steps=3)
    state, _ = trainer.run()
    assert state.tokens == 3 * 4 * 64
    monkeypatch.setattr(gpu, "peak_flops", lambda _: 1e12)
    shares = gpu.utilization(trainer, 3, state)
    mfu, hardware = shares["mfu"], shares["hardware_utilization"]
    assert mfu is not None and hardware is not None and 0 < mfu < hardware


def test_busy_time_is_the_union_of_kernels() -> None:
    assert gpu.busy([(0, 2), (1, 3), (5, 6), (5.5, 5.6)]) == 4
