"""Two processes over gloo compute the same as one process in a joint and a finetune stage."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.trainer.process_group import join
from tests.integration.worker_processes import process_context
from tests.redis_server import free_port
from tests.support import wait_for
from tests.unit.training.made import TINY, made_prepared, tiny, trainer_of
from tlm_core.errors import WorkerLost
from tlm_core.kinds.learning_curve import BILSTM, EVALUATE_BILSTM, LearningCurveOptions, bilstm_params
from tlm_core.stages import FINETUNE, JOINT
from tlm_core.training import buckets, encoder_stages, passes
from tlm_core.training.local import LocalCheckpoints, LocalReporter, run_stage
from tlm_core.training.objective import Workers, accumulate_gradient
from tlm_core.training.params import SHRUNK, FinetuneParams, JointParams, SeedsParams
from tlm_core.training.recipe import Recipe
from tlm_core.training.stage import StageContext, StopRequested
from tlm_core.training.state import TrainState, checkpoint_writer


def work(
    rank: int,
    size: int,
    port: int,
    folder: Path,
    recipe: Recipe,
    stop_at: int | None,
    tight: int | None,
    stream: bool = False,
    backend: str = "gloo",
) -> None:
    torch.set_num_threads(1)
    if backend == "nccl":  # As Ray does, show this process one GPU.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(size)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[rank]
    if rank == tight:
        passes.accumulate_gradient = _with_memory_for_two_rows
    if stream:
        _use_streams(tight=rank == tight)
    join("job_1.main.1", "127.0.0.1", port, rank, size, backend=backend, timeout=timedelta(minutes=2))
    inputs = {"prepared": folder / "prepared"}
    try:
        for stage, params in ((JOINT, JointParams.of(recipe, 2)), (FINETUNE, FinetuneParams.of(recipe, 2))):
            out = folder / f"{stage.name}{size}" if rank == 0 else folder / f"{stage.name}{size}.{rank}"
            out.mkdir(exist_ok=True)
            should_continue_at = None if stop_at is None else lambda step: step < stop_at
            context = StageContext(
                inputs=inputs,
                params=params,
                out=out,
                report=LocalReporter(should_continue_at=should_continue_at),
                checkpoints=LocalCheckpoints(folder / f"checkpoints.{stage.name}"),
                rank=rank,
                world_size=size,
                scratch=folder,
            )
            meta = stage.load()(context)
            (folder / f"{stage.name}{size}.{rank}.json").write_text(json.dumps(meta))
            torch.distributed.barrier()  # the next stage starts after the artifact is published
            inputs["joint"] = folder / f"{stage.name}{size}"
    except StopRequested:
        (folder / f"stopped.{rank}").touch()
    finally:
        torch.distributed.destroy_process_group()


def _with_memory_for_two_rows(model: Any, batch: Any, workers: Workers, micro_rows: int, *args: Any) -> Any:
    if micro_rows > 2:
        raise torch.OutOfMemoryError("Out of memory.")
    return accumulate_gradient(model, batch, workers, micro_rows, *args)


def _use_streams(*, tight: bool) -> None:
    """Compute on this process's CPU as a GPU would. tight: its memory fits two rows."""
    from tlm_core.training.stream_passes import StreamPasses

    run = StreamPasses._run

    buckets.BUCKET = 4000  # several in a small model

    def limited(self: StreamPasses, leaves: Any, part: Any, *rest: Any) -> Any:
        if tight and len(part.tokens) > 2 * TINY["model.max_length"]:
            raise torch.OutOfMemoryError("Out of memory.")
        return run(self, leaves, part, *rest)

    def chosen(*args: Any, compiled: bool = False, loss: str, mask_rate: float = 0.0) -> StreamPasses:  # noqa: ARG001
        *first, precision = args
        return StreamPasses(*first, loss, mask_rate, precision, compiled=False)

    StreamPasses._run = limited  # type: ignore[method-assign]
    encoder_stages.gpu_passes = chosen


def run_workers(
    size: int,
    folder: Path,
    recipe: Recipe,
    *,
    stop_at: int | None = None,
    tight: int | None = None,
    stream: bool = False,
) -> None:
    """Train on `size` workers. tight: the rank whose memory fits two rows. stream: as GPUs do."""
    start(work, size, folder, recipe, stop_at, tight, stream)


def start(target: Callable[..., None], size: int, *args: Any, seconds: float = 120) -> None:
    """Run target(rank, size, port, *args) in `size` processes, all of which must succeed in time."""
    context, port = process_context(), free_port()
    workers = [context.Process(target=target, args=(rank, size, port, *args)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(seconds)
    assert [worker.exitcode for worker in workers] == [0] * size


@pytest.fixture
def recipe() -> Recipe:
    return tiny(precision="fp32", joint__budget__steps=6, finetune__epochs=1, checkpoint_steps=1000)


def points(folder: Path) -> list[dict[str, Any]]:
    history: dict[str, list[dict[str, Any]]] = json.loads((folder / "history.json").read_text())
    return history["points"]


def test_two_workers_train_as_one(tmp_path: Path, recipe: Recipe) -> None:
    made_prepared(tmp_path, recipe)
    for size in (1, 2):
        run_workers(size, tmp_path, recipe)
    for alone, shared in zip(points(tmp_path / "joint1"), points(tmp_path / "joint2"), strict=True):
        assert shared["mlm"] == pytest.approx(alone["mlm"], rel=1e-4)
        assert shared["tokens"] == alone["tokens"]
    first, second = (load_file(tmp_path / f"joint{size}" / "model.safetensors") for size in (1, 2))
    for name, tensor in first.items():
        # Muon rounds to bfloat16, so another order of the gradient's sum changes the weights slightly.
        assert (second[name] - tensor).abs().max() <= 0.02, name
    both = [json.loads((tmp_path / f"finetune2.{rank}.json").read_text()) for rank in (0, 1)]
    assert both[0] == both[1]
    weights = load_file(tmp_path / "finetune2" / "model.safetensors")
    content = b"".join(weights[name].numpy().tobytes() for name in sorted(weights))
    assert both[0]["weights_sha256"] == hashlib.sha256(content).hexdigest()


def test_workers_sum_bf16_gradients_in_buckets(tmp_path: Path) -> None:
    recipe = tiny(precision="bf16", joint__budget__steps=4, joint__optimizer__name="adamw", finetune__max_steps=2)
    made_prepared(tmp_path, recipe)
    for size in (1, 2):
        run_workers(size, tmp_path, recipe, stream=True)
    alone, shared = points(tmp_path / "joint1"), points(tmp_path / "joint2")
    for term in ("mlm", "gradient_norm"):
        assert [point[term] for point in shared] == pytest.approx([point[term] for point in alone], rel=1e-2)


def join_attempt(rank: int, size: int, port: int, folder: Path) -> None:
    """Join as a rank of attempt 2; the last process, as rank 1 of attempt 1."""
    late, connect = rank == size - 1, partial(join, host="127.0.0.1", port=port, size=size - 1, backend="gloo")
    if late:
        with pytest.raises(torch.distributed.DistError):
            connect("job_1.main.1", rank=1, timeout=timedelta(seconds=2))
        (folder / "refused").touch()
        return
    if rank:
        wait_for((folder / "refused").exists, 60)
    connect("job_1.main.2", rank=rank, timeout=timedelta(seconds=60))
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    torch.distributed.destroy_process_group()
    assert total == size - 1


def test_rank_of_another_attempt_cannot_join(tmp_path: Path) -> None:
    start(join_attempt, 3, tmp_path)


def test_two_workers_compute_the_gradient_of_one(tmp_path: Path) -> None:
    recipe = tiny(
        precision="fp32", joint__budget__steps=6, joint__optimizer__name="adamw", joint__rho1=3, finetune__epochs=1
    )
    made_prepared(tmp_path, recipe)
    for size in (1, 2):
        run_workers(size, tmp_path, recipe)
    alone, shared = points(tmp_path / "joint1"), points(tmp_path / "joint2")
    assert shared[0]["gradient_norm"] == pytest.approx(alone[0]["gradient_norm"], rel=1e-6)
    for term in ("mlm", "gradient_norm"):
        assert [point[term] for point in shared] == pytest.approx([point[term] for point in alone], rel=1e-4)
    assert shared[3]["task"] == pytest.approx(alone[3]["task"], rel=1e-5)


def test_all_workers_stop_at_the_same_step(tmp_path: Path, recipe: Recipe) -> None:
    made_prepared(tmp_path, recipe)
    run_workers(2, tmp_path, recipe, stop_at=3)
    assert (tmp_path / "stopped.0").exists() and (tmp_path / "stopped.1").exists()
    assert len(list((tmp_path / "checkpoints.joint").iterdir())) == 1
    run_workers(2, tmp_path, recipe)
    made_prepared(tmp_path / "whole", recipe)
    run_workers(2, tmp_path / "whole", recipe)
    resumed, whole = (folder / "finetune2" / "model.safetensors" for folder in (tmp_path, tmp_path / "whole"))
    assert resumed.read_bytes() == whole.read_bytes(), "A resumed run equals an uninterrupted one."


def test_workers_share_the_smallest_rows_and_one_clock(tmp_path: Path) -> None:
    recipe = tiny(precision="fp32", joint__budget__seconds=0.5, finetune__epochs=1, checkpoint_steps=1000)
    made_prepared(tmp_path, recipe)
    run_workers(2, tmp_path, recipe, tight=1)
    for stage in ("joint", "finetune"):
        first, second = (json.loads((tmp_path / f"{stage}2.{rank}.json").read_text()) for rank in (0, 1))
        assert first == second and first[SHRUNK] in (1, 2), "Every worker reports the smallest rows."


def evaluate_bilstm(rank: int, size: int, port: int, folder: Path) -> None:
    """Evaluate on the ranks that compute the stage in a job."""
    torch.set_num_threads(1)
    join("job_1.main.1", "127.0.0.1", port, rank, size, backend="gloo", timeout=timedelta(seconds=30))
    if rank == 0 or EVALUATE_BILSTM.parallel:
        context = StageContext(
            inputs={"prepared": folder / "prepared", "task": folder / "task", "finetune.s2": folder / "bilstm"},
            params=SeedsParams(seeds=(2,)),
            out=folder / f"evaluated{size}.{rank}",
            report=LocalReporter(),
            checkpoints=LocalCheckpoints(folder / "checkpoints"),
            rank=rank,
            world_size=size,
        )
        context.out.mkdir()
        EVALUATE_BILSTM.load()(context)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_workers_evaluate_a_bilstm_as_one(tmp_path: Path) -> None:
    recipe = tiny(precision="fp32", finetune__epochs=1, selection__selector="none")
    prepared = made_prepared(tmp_path, recipe, alone=True)
    options = LearningCurveOptions.model_validate({"lstm": {"layers": 1, "hidden": 8, "embedding": 8}})
    run_stage(BILSTM, {"prepared": prepared}, bilstm_params(recipe, options, 2), tmp_path / "bilstm")
    for size in (1, 2):
        start(evaluate_bilstm, size, tmp_path)
    alone, shared = (json.loads((tmp_path / f"evaluated{size}.0/report.json").read_text()) for size in (1, 2))
    assert alone["mean"] == shared["mean"]
    assert not list((tmp_path / "evaluated2.1").iterdir()), "Only rank 0 writes the report."


def test_workers_that_read_results_late_decide_together(tmp_path: Path) -> None:
    recipe = tiny(
        precision="fp32", joint__budget__steps=10, joint__optimizer__name="adamw", joint__rho1=3, finetune__epochs=1
    )
    made_prepared(tmp_path, recipe)
    run_workers(1, tmp_path, recipe, stream=True)
    run_workers(2, tmp_path, recipe, stream=True, stop_at=3, tight=1)
    assert (tmp_path / "stopped.0").exists() and (tmp_path / "stopped.1").exists()
    run_workers(2, tmp_path, recipe, stream=True, tight=1)
    alone, shared = points(tmp_path / "joint1"), points(tmp_path / "joint2")
    for term in ("mlm", "gradient_norm"):
        assert [point[term] for point in shared] == pytest.approx([point[term] for point in alone], rel=1e-4)
    for stage in ("joint", "finetune"):
        first, second = (json.loads((tmp_path / f"{stage}2.{rank}.json").read_text()) for rank in (0, 1))
        assert first == second and first[SHRUNK] in (1, 2)


def test_attempts_may_have_different_numbers_of_workers(tmp_path: Path, recipe: Recipe) -> None:
    whole = tmp_path / "whole"
    for folder in (tmp_path, whole):
        made_prepared(folder, recipe)
    run_workers(2, whole, recipe)
    for size, stop_at in ((2, 2), (1, 4), (2, None)):
        run_workers(size, tmp_path, recipe, stop_at=stop_at)
    interrupted, uninterrupted = (points(folder / "joint2") for folder in (tmp_path, whole))
    assert [point["tokens"] for point in interrupted] == [point["tokens"] for point in uninterrupted]
    for term in ("mlm", "gradient_norm"):
        whole_run = [point[term] for point in uninterrupted]
        assert [point[term] for point in interrupted] == pytest.approx(whole_run, rel=1e-4)
    checkpoint = LocalCheckpoints(tmp_path / "checkpoints.joint").latest()  # two steps of two workers, two of one
    assert checkpoint is not None
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["seconds"] < state["worker_seconds"] < 2 * state["seconds"]


def load_different_checkpoints(rank: int, size: int, port: int, folder: Path) -> None:
    """Rank 0 reads a checkpoint of step 4, and rank 1 reads none."""
    join("job_1.main.1", "127.0.0.1", port, rank, size, backend="gloo", timeout=timedelta(minutes=1))
    trainer = trainer_of(folder / str(rank))
    if rank == 0:
        write = checkpoint_writer(TrainState(step=4), trainer.model, trainer.optimizer, None)
        trainer.ctx.checkpoints.save(write, step=4, metrics={})
    trainer.ctx = replace(trainer.ctx, rank=rank, world_size=size)
    with pytest.raises(WorkerLost, match="loaded no checkpoint, and another loaded the checkpoint of step 4"):
        trainer.run()


def test_workers_with_different_checkpoints_do_not_train(tmp_path: Path) -> None:
    start(load_different_checkpoints, 2, tmp_path)


def lose_the_other(rank: int, size: int, port: int) -> None:
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    if rank:
        os._exit(0)  # as if it was killed
    with pytest.raises(WorkerLost, match="lost its connection"):
        Workers(rank, size).sum(torch.ones(1))


def test_worker_whose_peer_died_reports_a_loss() -> None:
    start(lose_the_other, 2)


def stop_the_other(rank: int, size: int, port: int, limit: float) -> None:
    """Rank 1 is stopped while rank 0 waits for it in a collective, and goes on afterwards."""
    join("job_1.main.1", "127.0.0.1", port, rank, size, backend="gloo", timeout=timedelta(seconds=limit))
    workers = Workers(rank, size)
    other = int(workers.sum(torch.tensor(os.getpid() if rank else 0)))
    if rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(WorkerLost, match="lost its connection"):
        workers.sum(torch.ones(1))
    if not rank:
        os.kill(other, signal.SIGCONT)
        assert 0.9 * limit < time.monotonic() - begun < limit + 10


def test_collective_with_a_stopped_worker_ends_at_its_limit() -> None:
    start(stop_the_other, 2, 2.0)
