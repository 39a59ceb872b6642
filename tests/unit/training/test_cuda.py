"""The passes for GPUs on a GPU. Deselected by default; `make test-gpu` runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.test_training_workers import points, start, work
from tests.unit.training.made import compare, made_prepared, scattered, tiny, trainer_of
from tlm_core.training.block_mask import block_mask
from tlm_core.training.loop import to_host
from tlm_core.training.stage import StopRequested
from tlm_core.training.stream import StreamKernels
from tlm_core.training.stream_passes import StreamPasses

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    pytest.mark.usefixtures("report_at_every_step"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]
GPU = torch.device("cuda")
SIZE = {"precision": "bf16", "model__hidden": 64, "model__heads": 4}


@pytest.fixture(autouse=True)
def whole_memory() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("flex", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_of_documents_matches_the_dense_form(window: int | None, flex: bool) -> None:
    begins = torch.tensor([0, 7, 40, 64, 64], dtype=torch.int32, device=GPU)
    sequence = torch.repeat_interleave(torch.arange(4, dtype=torch.int32, device=GPU), begins.diff())
    kernels = StreamKernels(sequence, begins, 48, window, None)

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        blocks = block_mask(sequence, begins, window) if flex else None
        return replace(kernels, blocks=blocks).attend(qkv, 4, 0.0)

    draw = torch.Generator(GPU).manual_seed(0)
    qkv, upstream = (torch.randn(64, n * 4 * 32, generator=draw, device=GPU, dtype=torch.bfloat16) for n in (3, 1))
    exact = qkv.float().requires_grad_()
    chosen = torch.compile(attend, fullgraph=True, dynamic=False) if flex else attend
    attended = chosen(qkv.requires_grad_())
    wanted = kernels._dense(*exact.unflatten(-1, (3, 4, -1)).unbind(-3)).flatten(-2)
    torch.testing.assert_close(attended.float(), wanted, rtol=2e-2, atol=2e-2)
    (gradient,) = torch.autograd.grad(attended, qkv, upstream)
    (reference,) = torch.autograd.grad(wanted, exact, upstream.float())
    torch.testing.assert_close(gradient.float(), reference, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize(("architecture", "compiled"), [("modernbert", True), ("bert", True), ("modernbert", False)])
def test_twenty_steps_have_the_losses_of_a_cpu(architecture: str, compiled: bool, tmp_path: Path) -> None:
    over: dict[str, Any] = {**SIZE, "steps": 20, "joint__rho1": 3, "model__architecture": architecture}
    trainer = trainer_of(tmp_path / "gpu", **over)
    assert isinstance(trainer.passes, StreamPasses) and trainer.passes.compiled
    trainer.passes.compiled = compiled
    ours, _ = scattered(trainer).run()
    assert trainer.passes._replays is not None
    recordings = trainer.passes._replays._recordings.values()
    assert sum(recording is not None for recording in recordings) >= 2, "one for each kind of batch"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlm_core.training.encoder_stages.pick_device", lambda: torch.device("cpu"))
        plain = trainer_of(tmp_path / "cpu", **{**over, "precision": "fp32"})
    plain.batches = trainer.batches  # with the same masks
    wanted, _ = scattered(plain).run()
    assert len(ours.points) == 20
    compare(ours.points, wanted.points, 1e-2)


@pytest.mark.parametrize("number", [0, 1], ids=["passages", "task texts"])
def test_a_step_does_not_wait_for_the_device(number: int, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, joint__rho1=1, **SIZE)
    trainer.run()
    assert isinstance(trainer.passes, StreamPasses)
    loaded = trainer.passes.load(trainer.batches(number, 0.0), 8)
    for _ in range(3):  # until PyTorch replays a CUDA graph
        trainer._launch(loaded, False)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    step = trainer._launch(loaded, False)
    assert step.ready is not None
    torch.cuda.set_sync_debug_mode("default")
    step.ready.synchronize()
    assert step.values.isfinite().all() and not step.values.is_cuda


def test_device_skips_a_step_that_is_not_finite(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 4, **{**SIZE, "joint__rho1": 1, "joint__optimizer__non_finite": "skip"})
    with torch.no_grad():
        trainer.model.get_parameter("task.out.bias")[0] = float("inf")
    state, _ = trainer.run()
    assert state.skipped == 2 and state.step == 4
    assert trainer.model.get_parameter("encoder.tokens.weight").isfinite().all()


def test_values_reach_the_host_without_waiting() -> None:
    numbers = torch.arange(3.0, device=GPU)
    torch.cuda.set_sync_debug_mode("error")
    values, ready = to_host(numbers)
    assert ready is not None
    ready.synchronize()
    assert values.tolist() == [0.0, 1.0, 2.0]


def test_out_of_memory_halves_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = {**SIZE, "model__hidden": 512, "model__intermediate": 2048, "joint__batch_rows": 512}
    trainer = trainer_of(tmp_path, 2, **over)
    assert isinstance(trainer.passes, StreamPasses)
    trainer.passes.compiled = False  # each smaller part would be compiled
    monkeypatch.setattr(StreamPasses, "first_rows", lambda *_: 512)
    used = torch.cuda.memory_allocated() + 300_000_000
    torch.cuda.set_per_process_memory_fraction(used / torch.cuda.get_device_properties(GPU).total_memory)
    state, _ = trainer.run()
    assert state.step == 2 and state.micro_rows < 512


def test_first_rows_fit_the_memory(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, **SIZE)
    assert trainer.passes.first_rows(lambda: trainer.batches(0, 0.0)) == 64, "all rows of a small step"


def test_resumed_run_has_the_losses_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, _ = trainer_of(tmp_path / "whole", 8, **SIZE).run()
    stopped = trainer_of(tmp_path / "stopped", 8, **SIZE)
    stopped.ctx.report.should_continue_at = lambda step: step < 3  # type: ignore[attr-defined]
    with pytest.raises(StopRequested):
        stopped.run()
    checkpoints: Any = stopped.ctx.checkpoints
    state, _ = trainer_of(tmp_path / "again", 8, checkpoints=checkpoints, **SIZE).run()
    assert [p["mlm"] for p in state.points] == pytest.approx([p["mlm"] for p in whole.points], rel=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs on this machine")
def test_two_gpus_train_as_one(tmp_path: Path) -> None:
    recipe = tiny(joint__budget__steps=6, finetune__epochs=1, checkpoint_steps=1000, precision="bf16")
    made_prepared(tmp_path, recipe)
    for size in (1, 2):
        start(work, size, tmp_path, recipe, None, None, False, "nccl", seconds=240)
    compare(points(tmp_path / "joint2"), points(tmp_path / "joint1"), 1e-2)
