"""Buckets of gradients are summed in one order on all workers, and begin during the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.training.made import tiny, trainer_of
from tlm_core.training import buckets
from tlm_core.training.architectures import scratch_shape
from tlm_core.training.buckets import Buckets, divide
from tlm_core.training.model import TaskModel
from tlm_core.training.objective import Workers
from tlm_core.training.optim import FlatOptimizer
from tlm_core.training.stream_passes import StreamPasses

SIZE, CPU = 4000, torch.device("cpu")


@dataclass(frozen=True)
class Twins(Workers):
    """Two workers with equal rows. sizes: of the sums that began; before_sum: called before each."""

    sizes: list[int] = field(default_factory=list)
    before_sum: list[Callable[[], None]] = field(default_factory=list)

    def share(self, n: int) -> tuple[int, int]:
        return 0, n

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor.mul_(2)

    def start_sum(self, tensor: Tensor) -> Callable[[], None]:
        self.sizes.append(len(tensor))
        for call in self.before_sum:
            call()

        def wait() -> None:
            tensor.mul_(2)

        return wait


@pytest.fixture
def optimizer(monkeypatch: pytest.MonkeyPatch) -> FlatOptimizer:
    monkeypatch.setattr(buckets, "BUCKET", SIZE)
    recipe = tiny()
    model = TaskModel(scratch_shape(recipe.model, 300, 3))
    return FlatOptimizer(model, recipe.joint.optimizer, ("encoder", "vocabulary", "task"))


def parameters_of(optimizer: FlatOptimizer) -> list[tuple[str, torch.nn.Parameter]]:
    return optimizer._named


def test_buckets_cover_each_parameter_once_with_the_last_layers_first(optimizer: FlatOptimizer) -> None:
    parameters = parameters_of(optimizer)
    divided = divide(parameters, SIZE)
    assert sorted(name for bucket in divided for name in bucket.names) == sorted(name for name, _ in parameters)
    spans = sorted((bucket.start, bucket.stop) for bucket in divided)
    assert [stop for _, stop in spans[:-1]] == [start for start, _ in spans[1:]]
    assert all(bucket.stop - bucket.start <= SIZE or len(bucket.names) == 1 for bucket in divided)
    assert divided[0].part == "task"
    assert "encoder.tokens.weight" in divided[-1].names


def test_bucket_begins_as_soon_as_its_gradients_are_complete(optimizer: FlatOptimizer) -> None:
    twins, parameters = Twins(0, 2), parameters_of(optimizer)
    sums = Buckets(optimizer.buffers.gradient, parameters, twins, torch.float32)
    gradient = torch.randn(optimizer.size)
    optimizer.buffers.gradient[: optimizer.size] = gradient
    parts, started = ("encoder", "vocabulary"), []
    sums.begin(parts)
    for name, _ in reversed(parameters):
        sums.complete(name)
        started.append(len(twins.sizes))
    wanted = [bucket for bucket in divide(parameters, SIZE) if bucket.part in parts]
    assert started[-1] == len(wanted) > 2 and 0 < started[len(started) // 2] < len(wanted)
    assert twins.sizes == [bucket.stop - bucket.start for bucket in wanted]
    sums.finish(parts)
    result = optimizer.buffers.gradient[: optimizer.size]
    for bucket in divide(parameters, SIZE):
        here = slice(bucket.start, bucket.stop)
        assert torch.equal(result[here], gradient[here] * (2 if bucket.part in parts else 1))


def test_worker_that_begins_a_step_again_sends_each_bucket_once(optimizer: FlatOptimizer) -> None:
    twins, parameters = Twins(0, 2), parameters_of(optimizer)
    sums = Buckets(optimizer.buffers.gradient, parameters, twins, torch.bfloat16)
    parts, backward = ("encoder", "vocabulary", "task"), [name for name, _ in reversed(parameters)]
    for attempt in (backward[: len(backward) // 2], backward):
        optimizer.buffers.gradient[:] = 1.0
        sums.begin(parts)
        for name in attempt:
            sums.complete(name)
        optimizer.buffers.gradient.zero_()  # memory ran out
    optimizer.buffers.gradient[:] = 0.0
    sums.finish(parts)
    assert twins.sizes == [bucket.stop - bucket.start for bucket in divide(parameters, SIZE)]
    assert torch.all(optimizer.buffers.gradient[: optimizer.size] == 2.0)
    sums.finish(())  # a worker without rows, in a step that trains nothing
    assert len(twins.sizes) == len(divide(parameters, SIZE))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # PyTorch's compiler reads it
@pytest.mark.parametrize("compiled", [False, True])
def test_workers_sum_while_the_backward_pass_runs(
    tmp_path: Path, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "BUCKET", SIZE)
    compiler = partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(torch, "compile", lambda run, **_: compiler(run))
    torch._dynamo.reset()
    gradients, began = [], []
    for workers in (Workers(), Twins(0, 2)):
        trainer = trainer_of(tmp_path / str(workers.size))
        buffers, batch = trainer.optimizer.buffers, trainer.batches(0, 0.0)
        buffers.value += 0.05 * torch.randn(len(buffers.value), generator=torch.Generator().manual_seed(0))
        tokens = trainer.model.encoder.tokens.weight.grad
        assert tokens is not None
        if isinstance(workers, Twins):
            workers.before_sum.append(lambda grad=tokens: began.append(not grad.any()))
        form = compiled and workers.size > 1
        passes = StreamPasses(trainer.model, trainer.optimizer, workers, CPU, "cross_entropy", 0.8, "fp32", form)
        for _ in range(2):
            buffers.gradient.zero_()
            losses = passes.gradient(passes.load(batch, len(batch.rows)))
            buffers.set_totals(losses, torch.zeros(2))
            passes.reduce(batch, buffers)
        gradients.append(buffers.gradient.clone())
    assert torch.allclose(gradients[1], 2 * gradients[0], rtol=1e-5, atol=1e-7)
    assert began[0] and not began[-1], "the embedding's gradient is complete after the first sum began"
