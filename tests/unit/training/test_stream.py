"""The passes for GPUs, on a CPU: the same losses, gradients, and runs as those over packed rows."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.unit.training.made import compare, made_prepared, scattered, tiny, trainer_of
from tlm_core.errors import OutOfMemory
from tlm_core.pulse import PULSE
from tlm_core.training.device import model_fits_device
from tlm_core.training.encoder_stages import build
from tlm_core.training.local import LocalCheckpoints, LocalReporter
from tlm_core.training.loop import Trainer
from tlm_core.training.masking import NOT_MASKED
from tlm_core.training.memory import largest_rows
from tlm_core.training.model import TaskModel
from tlm_core.training.objective import Workers, loss_sums, needed_flops, own_rows, step_flops
from tlm_core.training.passes import Loaded
from tlm_core.training.prepared import Batch, JointBatches, Prepared
from tlm_core.training.stage import StopRequested
from tlm_core.training.state import weights
from tlm_core.training.stream import Documents, Part, Sizes, StreamLoss, rows_of_part
from tlm_core.training.stream_passes import StreamPasses

pytestmark = pytest.mark.usefixtures("report_at_every_step")
CPU = torch.device("cpu")
# Results that differ by the order of sums, in both formats.
CLOSE = {"fp32": 1e-4, "bf16": 1e-2}


def setup(folder: Path, **over: Any) -> tuple[TaskModel, JointBatches]:
    """Return a model with random weights everywhere, and batches of passages and of task texts in turn."""
    recipe = tiny(joint__rho1=1, **over)
    prepared = Prepared(made_prepared(folder, recipe, pair="bert" in over.values()))
    model = build(recipe.model, prepared, 3)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return model, JointBatches(prepared, recipe.joint, 3, Workers().share)


def sizes(batch: Batch, rows: int) -> Sizes:
    length = batch.tokens.shape[1]
    return Sizes.of(rows_of_part(-(-batch.rows.real_tokens // length), rows), length, 0.5)


def stream_sums(model: TaskModel, batch: Batch, rows: int) -> torch.Tensor:
    loss = StreamLoss(model, batch.loss, batch.tokens.shape[1])
    weights = None if batch.class_weights is None else torch.from_numpy(batch.class_weights)
    kinds = bool(batch.mlm_weight), bool(batch.task_weight)
    parts = Documents.of(batch).parts(sizes(batch, rows))
    results = [loss(part, *kinds, weights) for part in parts]
    sum(share for share, _ in results).backward()
    return torch.stack([sums for _, sums in results]).sum(dim=0)


def changed(batch: Batch, kind: str) -> Batch:
    """Return the batch with another kind of labels."""
    random = np.random.default_rng(0)
    if kind == "class weights":
        return replace(batch, class_weights=np.array([1.0, 2.0, 0.5], np.float32))
    if kind == "probabilities":
        return replace(batch, labels=random.dirichlet(np.ones(3), len(batch.labels)).astype(np.float32))
    if kind == "regression":
        return replace(batch, labels=random.normal(size=len(batch.labels)).astype(np.float32), loss="mse")
    return batch


@pytest.mark.parametrize("kind", ["labels", "class weights", "probabilities", "regression"])
@pytest.mark.parametrize("architecture", ["modernbert", "bert", "windows"])
def test_stream_has_the_losses_and_gradients_of_rows(architecture: str, kind: str, tmp_path: Path) -> None:
    if architecture == "windows":
        model, batches = setup(tmp_path)
        shape = replace(model.shape, windows=(3, None), thetas=(10_000.0, 500.0))
        other = TaskModel(shape)
        other.load_state_dict(model.state_dict())
        model = other
    else:
        model, batches = setup(tmp_path, model__architecture=architecture)
    for step, rows in itertools.product((0, 1), (1, 3, 64)):
        batch = changed(batches(step, 0.0), kind)
        mlm, task, words = loss_sums(model, batch, CPU)
        (batch.shares[0] * (mlm + words) + batch.shares[1] * task).backward()
        wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        torch.testing.assert_close(stream_sums(model, batch, rows), torch.stack((mlm, task)), rtol=1e-5, atol=1e-5)
        for name, gradient in wanted.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6, msg=name)
        model.zero_grad()


def test_parts_hold_each_document_once_and_have_equal_sizes(tmp_path: Path) -> None:
    _, batches = setup(tmp_path)
    for step, rows in itertools.product((0, 1), (1, 2, 64)):
        batch = batches(step, 0.0)
        expected = sizes(batch, rows)
        parts = Documents.of(batch).parts(expected)
        assert {(len(part.tokens), len(part.masked)) for part in parts} == {(expected.tokens, expected.masked)}
        assert len({len(part.begins) for part in parts}) == 1
        masked = np.concatenate([part.targets[part.targets >= 0].numpy() for part in parts])
        assert np.array_equal(masked, batch.targets[batch.targets != NOT_MASKED])
        assert sum(int(part.labeled.sum()) for part in parts) == batch.documents
        for part in parts:
            lengths = part.begins.diff()
            assert int(lengths.sum()) == expected.tokens and int(lengths.max()) <= expected.longest


def test_each_worker_builds_its_rows_alone(tmp_path: Path) -> None:
    model, batches = setup(tmp_path, joint__batch_rows=5)
    prepared, joint = batches._prepared, batches._joint
    whole = batches(2, 0.0)
    assert whole.real_tokens == 5 * 48 and whole.masked == np.count_nonzero(whole.targets != NOT_MASKED)
    for workers in (Workers(0, 2), Workers(1, 2), Workers(1, 6), Workers(0, 6)):
        own = JointBatches(prepared, joint, 3, workers.share)(2, 0.0)
        start, stop = workers.share(5)
        assert own_rows(own, workers) is own and len(own.rows) == stop - start
        assert np.array_equal(own.tokens, whole.tokens[start:stop])
        assert np.array_equal(own.targets, whole.targets[start:stop])
        assert (own.real_tokens, own.masked, own.shares) == (whole.real_tokens, whole.masked, whole.shares)
        assert step_flops(model.shape, own) == step_flops(model.shape, whole)
        if stop > start:
            assert needed_flops(model.shape, own) == pytest.approx(needed_flops(model.shape, whole), rel=0.2)
        tasks, own = batches(1, 0.0), JointBatches(prepared, joint, 3, workers.share)(1, 0.0)
        start, stop = workers.share(tasks.size)
        assert own_rows(own, workers) is own and len(own.rows) == stop - start
        assert np.array_equal(own.tokens, tasks.tokens[start:stop])
        assert np.array_equal(own.targets, tasks.targets[start:stop])
        assert np.array_equal(own.labels, tasks.part(start, stop).labels)
        assert (own.size, own.real_tokens, own.shares) == (tasks.size, tasks.real_tokens, tasks.shares)
        assert needed_flops(model.shape, own) == needed_flops(model.shape, tasks)


def test_full_rows_fill_parts_of_exact_masks(tmp_path: Path) -> None:
    _, batches = setup(tmp_path, joint__mask_rate=0.3)
    batch = batches(0, 0.0)
    parts = Documents.of(batch).parts(Sizes.of(2, batch.tokens.shape[1], 0.3))
    assert len(parts) == len(batch.rows) / 2, "passages leave no token of a part empty"


def test_document_that_exceeds_a_part_is_an_error(tmp_path: Path) -> None:
    _, batches = setup(tmp_path)
    with pytest.raises(ValueError, match="Document 0 does not fit in one part"):
        Documents.of(batches(0, 0.0)).parts(Sizes(1, 128, 48))


@pytest.mark.parametrize(
    ("documents", "before", "expected"),
    [(1, 0, 1), (6, 0, 7), (7, 0, 8), (7, 11, 8), (8, 11, 8), (9, 11, 12), (60, 0, 80), (560, 0, 768)],
)
def test_parts_have_few_numbers_of_sequences(documents: int, before: int, expected: int) -> None:
    sizes = Sizes(tokens=100, masked=128, longest=48)
    assert sizes.sequences(documents, before) == expected + 3, "three sequences can fill 100 tokens"


@pytest.mark.parametrize(
    ("rows", "most", "expected"), [(64, 64, 64), (256, 64, 64), (96, 64, 48), (33, 64, 40), (3, 64, 3)]
)
def test_parts_divide_rows_evenly_into_few_sizes(rows: int, most: int, expected: int) -> None:
    assert rows_of_part(rows, most) == expected


def stream_trainer(folder: Path, precision: str = "fp32", *, compiled: bool = False, **over: Any) -> Trainer:
    """Return the trainer of `trainer_of` with the passes for GPUs. Its masks are those of a CPU."""
    trainer = trainer_of(folder, precision=precision, **over)
    trainer.passes = StreamPasses(
        trainer.model, trainer.optimizer, trainer.workers, CPU, "cross_entropy", 0.8, precision, compiled
    )
    return trainer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("over", [{}, {"joint__optimizer__name": "adamw", "model__architecture": "bert"}])
def test_twenty_steps_have_the_losses_of_rows(precision: str, over: dict[str, Any], tmp_path: Path) -> None:
    options = {"steps": 20, "joint__rho1": 3, **over}
    ours, _ = scattered(stream_trainer(tmp_path / "stream", precision, **options)).run()
    rows, _ = scattered(trainer_of(tmp_path / "rows", precision=precision, **options)).run()
    assert len(ours.points) == 20 and (ours.tokens, ours.flops) == (rows.tokens, rows.flops)
    compare(ours.points, rows.points, CLOSE[precision])


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_both_losses_are_traced_without_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(torch, "compile", lambda run, **_: compiler(run))
    over = {"model__architecture": "bert", "model__dropout": 0.1, "joint__rho1": 1}
    state, _ = stream_trainer(tmp_path / "stream", "bf16", compiled=True, steps=4, **over).run()
    assert [point["task"] is None for point in state.points] == [True, False, True, False]
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 3


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of PyTorch's own import
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_steps_share_one_graph_and_have_the_losses_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlm_core.training.stream_passes.MICRO_ROWS", 2)  # so that all parts have one size
    size = {"model__layers": 1, "steps": 20, "joint__rho1": 0}  # both losses at each step
    compiled, _ = scattered(stream_trainer(tmp_path / "compiled", compiled=True, **size)).run()
    rows, _ = scattered(trainer_of(tmp_path / "rows", **size)).run()
    assert len(compiled.points) == 20
    compare(compiled.points, rows.points, 1e-4)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.usefixtures("fresh_compiler")
def test_traced_steps_of_the_joint_loss_have_the_losses_of_rows(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without code generation, which takes minutes for these graphs."""
    compiler = partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(torch, "compile", lambda run, **_: compiler(run))
    size = {"model__layers": 1, "steps": 20, "joint__rho1": 1}
    traced, _ = scattered(stream_trainer(tmp_path / "traced", precision, compiled=True, **size)).run()
    rows, _ = scattered(trainer_of(tmp_path / "rows", precision=precision, **size)).run()
    assert len(traced.points) == 20
    compare(traced.points, rows.points, CLOSE[precision])


def test_each_new_graph_may_take_as_long_as_a_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    trainer = stream_trainer(tmp_path, compiled=True, steps=8, joint__rho1=3)
    warm = []
    trainer.before_step = lambda: warm.append(PULSE.warm)
    add = StreamPasses._add

    def recorded(self: StreamPasses, *arguments: Any) -> torch.Tensor:
        warm[-1] = PULSE.warm
        return add(self, *arguments)

    monkeypatch.setattr(StreamPasses, "_add", recorded)
    trainer.run()
    assert warm[:4] == [False, True, True, False], "the fourth step is the first on task texts"
    assert warm[4:7] == [True] * 3


def test_resumed_stream_run_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    options = {"steps": 9, "joint__rho1": 2, "joint__mask_rate_end": 0.1, "model__dropout": 0.1}
    whole = stream_trainer(tmp_path / "whole", **options)
    done, _ = whole.run()
    stopped = stream_trainer(tmp_path / "stopped", **options)
    stopped.ctx.report.should_continue_at = lambda step: step < 4  # type: ignore[attr-defined]
    with pytest.raises(StopRequested):
        stopped.run()
    again = stream_trainer(
        tmp_path / "again", checkpoints=LocalCheckpoints(tmp_path / "stopped/checkpoints"), **options
    )
    assert 4 < stopped.state.step < 9
    state, _ = again.run()
    assert state.points == done.points and state.step == done.step == 9
    for name, tensor in weights(whole.model).items():
        assert torch.equal(weights(again.model)[name], tensor), name


def test_every_step_is_reported_once_though_results_are_late(tmp_path: Path) -> None:
    trainer = stream_trainer(tmp_path, steps=6)
    trainer.run()
    assert isinstance(trainer.ctx.report, LocalReporter)
    assert trainer.ctx.report.steps == [1, 2, 3, 4, 5, 6]
    assert [point["step"] for point in trainer.ctx.report.points] == [1, 2, 3, 4, 5, 6]


def test_hardware_utilization_counts_unused_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlm_core.training.loop.peak_flops", lambda _: 1e12)
    ticks = itertools.count()
    trainer = stream_trainer(tmp_path, steps=4, joint__rho1=1, clock=lambda: float(next(ticks)))
    state, _ = trainer.run()
    assert isinstance(trainer.ctx.report, LocalReporter)
    point, batch = trainer.ctx.report.points[-2], trainer.batches(3, 0.75)  # results are one step late
    launched = trainer.passes.load(batch, state.micro_rows).flops
    assert launched is not None
    seconds = (trainer.step_flops(batch) + trainer.optimizer.flops) / (point["gflops_per_second"] * 1e9)
    assert point["hardware_utilization"] == pytest.approx((launched + trainer.optimizer.flops) / seconds / 1e12)
    assert 0 < point["mfu"] * seconds * 1e12 < launched
    trainer.passes.workers = Workers(1, 3)  # type: ignore[attr-defined]
    assert 0 < (trainer.passes.load(batch, state.micro_rows).flops or 0) < launched / 2


def test_out_of_memory_loads_smaller_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = stream_trainer(tmp_path, steps=6)
    run = StreamPasses._run

    def tight(self: StreamPasses, leaves: Any, part: Part, *kinds: Any) -> Any:
        if len(part.tokens) > 3 * 48:
            raise torch.OutOfMemoryError("no room")
        return run(self, leaves, part, *kinds)

    monkeypatch.setattr(StreamPasses, "_run", tight)
    state, _ = trainer.run()
    assert isinstance(trainer.ctx.report, LocalReporter)
    assert trainer.ctx.report.events == [("memory.stepped_down", {"step": 1, "rows": 2})]
    assert state.micro_rows == 2 and state.step == 6


def test_out_of_memory_in_the_thread_of_batches_loads_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, load, loads = stream_trainer(tmp_path, steps=12), StreamPasses.load, itertools.count()

    def tight(self: StreamPasses, batch: Batch, rows: int) -> Loaded:
        if threading.current_thread() is not threading.main_thread() and next(loads) == 6:
            raise torch.OutOfMemoryError("no room")
        return load(self, batch, rows)

    monkeypatch.setattr(StreamPasses, "load", tight)
    state, _ = trainer.run()
    assert isinstance(trainer.ctx.report, LocalReporter)
    assert trainer.ctx.report.events == [("memory.stepped_down", {"step": 7, "rows": state.micro_rows})]
    assert state.step == 12


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (MemoryError("no room"), OutOfMemory, "exceeds the worker's main memory"),
        (ValueError("damaged text"), ValueError, "damaged text"),
    ],
)
def test_error_in_the_thread_of_batches_ends_the_stage(
    error: Exception, expected: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, load, loads = stream_trainer(tmp_path, steps=20), StreamPasses.load, itertools.count()

    def failing(self: StreamPasses, batch: Batch, rows: int) -> Loaded:
        if threading.current_thread() is not threading.main_thread() and next(loads) == 6:
            raise error
        return load(self, batch, rows)

    monkeypatch.setattr(StreamPasses, "load", failing)
    with pytest.raises(expected, match=message), model_fits_device():
        trainer.run()
    assert trainer.state.step == 6, "It ends the first step that needs the batch."


def test_rows_double_while_they_fit() -> None:
    def peak(rows: int) -> int:
        return 100 + 10 * rows

    assert [largest_rows(peak, 100, limit, 64) for limit in (0, 120, 259, 260, 10_000)] == [1, 2, 8, 16, 64]
    assert largest_rows(peak, 100, 10_000, 48) == 48


@pytest.mark.usefixtures("fresh_compiler")
def test_form_of_a_gpu_is_one_graph_with_flex_attention(tmp_path: Path) -> None:
    """Trace it with fake tensors, which need no GPU."""
    model, batches = setup(tmp_path)
    batch, graphs = batches(0, 0.0), []
    expected = sizes(batch, 8)
    (part,) = Documents.of(batch).parts(expected)

    def backend(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        module = StreamLoss(TaskModel(model.shape), batch.loss, 48)
        copies = {name: torch.empty(p.shape, dtype=torch.bfloat16) for name, p in module.named_parameters()}
        fake = Part(*(torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in part))
        run = torch.compile(
            lambda weights, part: torch.func.functional_call(module, weights, (part, True, True, None)),
            backend=backend,
            fullgraph=True,
            dynamic=False,
        )
        share, sums = run(copies, fake)
    assert share.device.type == "cuda" and sums.shape == (2,)
    (graph,) = graphs

    def values(target: object) -> list[tuple[Any, Any]]:
        """Return the first input and the output of the nodes that call `target`."""
        nodes = [node for node in graph.graph.nodes if target in (node.target, str(node.target))]
        return [(node.args[0].meta["example_value"], node.meta["example_value"]) for node in nodes]

    heads = torch.Size((1, 2, expected.tokens, 16))
    attended = [y[0] for _, y in values("flex_attention")]
    assert [(y.shape, y.dtype) for y in attended] == [(heads, torch.bfloat16)] * 2
    norms = values(torch.nn.functional.layer_norm)
    assert [(x.dtype, y.dtype) for x, y in norms] == [(torch.bfloat16, torch.bfloat16)] * 8
    logits, _ = values(torch.nn.functional.cross_entropy)[0]
    assert logits.shape[-1] % 128 == 0 and model.shape.vocab % 128, "The graph fills the vocabulary up."
