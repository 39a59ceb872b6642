"""The training loop of the joint and the finetune stage."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tlm_core.errors import NonFiniteLoss, OutOfMemory, WorkerLost
from tlm_core.pulse import PULSE
from tlm_core.tasks.metrics import rank
from tlm_core.training.ahead import batches_ahead
from tlm_core.training.device import out_of_memory, peak_flops
from tlm_core.training.model import TaskModel, seed_of
from tlm_core.training.objective import Workers
from tlm_core.training.optim import FlatOptimizer, Totals, learning_rate
from tlm_core.training.params import TrainParams
from tlm_core.training.passes import Loaded, Passes
from tlm_core.training.prepared import Batch
from tlm_core.training.recipe import Budget
from tlm_core.training.stage import StageContext, StopRequested
from tlm_core.training.state import Losses, LossMeans, TrainState, checkpoint_writer, load_checkpoint, weights

POINTS = 200
REPORT_SECONDS = 0.5
_STEADY = 1 / 8  # largest relative change of the expected number of steps that the reported total ignores
# Seconds between two checks whether a GPU has finished, and seconds after which a wait is unusually long.
POLL, PATIENCE = 0.0002, 5.0
# With `non_finite: skip`, a run may skip SKIPS steps or SKIPPED_SHARE of its steps so far, whichever is more.
SKIPS, SKIPPED_SHARE = 20, 0.01


@dataclass
class Step:
    """A step that the run has started. A GPU may still compute the step while the host continues.

    number: counts from 1. rate: share of the peak learning rate. flops: FLOPs of this worker's products, including
    padding and the optimizer. values: the values of `Totals`, then the norm of the gradient, complete in host memory
    after the event `ready`. tokens, progress: tokens and used share of the budget at the end of the step. losses, norm,
    stop: set after the host has read `values`.
    """

    number: int
    batch: Batch
    rate: float
    flops: float
    values: Tensor
    ready: torch.cuda.Event | None
    tokens: int = 0
    progress: float = 0.0
    losses: Losses = field(default_factory=dict)
    norm: float = 0.0
    stop: bool = False


@dataclass
class Trainer:
    """The training run of a stage.

    batches: (step, progress) → batch. step_flops: returns the FLOPs of both passes over a batch, with padding.
    needed_flops: returns the FLOPs without padding, for the GPU utilization. before_step: called before each step.

    validate: returns the model's validation scores. evaluate_at: the steps after which the run validates; 0 is before
    the first step. The run copies the best weights. curve: number of validations at equal shares of the budget. With
    `curve`, the run copies no weights. is_behind: called at half the budget; True ends the run. `validate` and
    `is_behind` receive this object, but must not store it. Its memory would then stay in use during the next stage.
    """

    ctx: StageContext[TrainParams]
    model: TaskModel
    optimizer: FlatOptimizer
    batches: Callable[[int, float], Batch]
    budget: Budget
    device: torch.device
    step_flops: Callable[[Batch], float]
    passes: Passes
    validate: Callable[[Trainer], dict[str, float | None]] | None = None
    evaluate_at: frozenset[int] = frozenset()
    curve: int = 0
    is_behind: Callable[[Trainer], bool] | None = None
    clock: Callable[[], float] = time.perf_counter
    needed_flops: Callable[[Batch], float] | None = None
    before_step: Callable[[], None] = lambda: None
    state: TrainState = field(default_factory=TrainState, init=False)
    best: dict[str, Tensor] | None = field(default=None, init=False)

    @property
    def workers(self) -> Workers:
        return Workers(self.ctx.rank, self.ctx.world_size)

    def run(self) -> tuple[TrainState, dict[str, Tensor] | None]:
        """Train to the end of the budget. Return the final state, and the best weights on validation, or None.

        Raises NonFiniteLoss, OutOfMemory, WorkerLost, CorruptArtifact, and, after saving a checkpoint, StopRequested.
        """
        self._start()
        with (
            PULSE.pace(steady=True),
            closing(
                batches_ahead(self.batches, self._load, self._flops, self.state, self.budget, self.passes.ahead)
            ) as batches,
        ):
            return self._train(batches)

    def _train(self, batches: Iterator[Loaded]) -> tuple[TrainState, dict[str, Tensor] | None]:
        state, report = self.state, _Progress(self)
        counted = self.clock()
        if state.step == 0 and 0 in self.evaluate_at and not state.evaluations:
            self._evaluate()
        unread: deque[Step] = deque()
        while not self._ended():
            used = state.progress(self.budget)
            self.before_step()
            step = self._launch(next(batches), report.stop)
            state.count(step.batch.real_tokens, self._flops(step.batch))
            report.count(step)
            # The time from step to step includes validation, the copy of a checkpoint, and waits for slow storage.
            counted = self._count_seconds(counted)
            step.tokens, step.progress = state.tokens, state.progress(self.budget)
            unread.append(step)
            finished = self._ended()
            halfway = self.is_behind is not None and used < 0.5 <= step.progress
            due = int(used * self.curve) < int(step.progress * self.curve)
            evaluate = due or state.step in self.evaluate_at
            save = state.step % self.ctx.params.checkpoint_steps == 0
            # All workers must read results at the same steps, because decisions depend on them.
            late = 0 if finished or evaluate or save or halfway else self.passes.late
            read = self._read(unread, late)
            stop = any(earlier.stop for earlier in read)
            if stop:
                read += self._read(unread, 0)
            if evaluate:
                self._evaluate()
            if halfway and self.is_behind and self.is_behind(self):
                break
            if not finished and (stop or save):
                self._checkpoint()
            if stop and not finished:
                raise StopRequested(f"The stage stopped on request after step {state.step}. Resume the job.")
            for earlier in read:
                report.tick(earlier)
            PULSE.warm_up()
        self._count_seconds(counted)
        return state, self.best

    def _ended(self) -> bool:
        return self.state.progress(self.budget) >= 1.0

    def _start(self) -> None:
        """Load the newest checkpoint, or begin with the same weights on all workers."""
        folder = self.ctx.checkpoints.latest()
        if folder is not None:
            self.state, self.best = load_checkpoint(folder, self.model, self.optimizer)
        else:
            self.state, self.best = TrainState(), None
        self._compare_checkpoints(-1 if folder is None else self.state.step)
        if folder is None:
            self.workers.first(self.optimizer.buffers.value)
        self.optimizer.refresh()
        rows = self.passes.first_rows(lambda: self.batches(self.state.step, self.state.progress(self.budget)))
        # The machine that resumes a run may hold fewer rows than the one that wrote the checkpoint.
        if folder is not None:
            rows = min(rows, self.state.micro_rows)
        self.state.micro_rows = self.workers.least(rows, self.device)

    def _compare_checkpoints(self, step: int) -> None:
        """Raise WorkerLost if the workers loaded checkpoints of different steps. step: -1 without a checkpoint.

        Another job can publish or delete checkpoints of the same stage between the reads of two workers.
        """
        least, greatest = self.workers.least(step, self.device), -self.workers.least(-step, self.device)
        if least != greatest:
            first = "no checkpoint" if least < 0 else f"the checkpoint of step {least}"
            raise WorkerLost(
                f"One worker loaded {first}, and another loaded the checkpoint of step {greatest}. The list of "
                "checkpoints changed between both reads. The next attempt reads the list again."
            )

    def _load(self, batch: Batch) -> Loaded:
        """Return the batch, prepared for the passes. If memory runs out, the result has 0 rows."""
        try:
            return self.passes.load(batch, self.state.micro_rows)
        except RuntimeError as error:
            if out_of_memory(error):
                return Loaded(batch, rows=0)
            raise

    def _flops(self, batch: Batch) -> float:
        return self.step_flops(batch) + self.optimizer.flops

    def _own_flops(self, loaded: Loaded) -> float:
        """Return the FLOPs of this worker's products in a step. GPUs divide Muon's matrices."""
        passes = self.step_flops(loaded.batch) / self.workers.size if loaded.flops is None else loaded.flops
        return passes + self.optimizer.flops / self.workers.size

    def _midway(self, batch: Batch) -> float:
        """Return the progress in the middle of the coming step; with a budget in seconds, at the start of the step."""
        # The middle gives the first step a learning rate above zero.
        half = {"steps": 0.5, "tokens": batch.real_tokens / 2, "flops": self._flops(batch) / 2, "seconds": 0.0}
        return min(1.0, self.state.progress(self.budget) + half[self.budget.unit] / self.budget.amount)

    def _launch(self, loaded: Loaded, stop: bool) -> Step:
        """Start and return a step, which a GPU completes later. stop: whether this worker requests a stop."""
        batch, before, number = loaded.batch, self.state.micro_rows, self.state.step
        rate = learning_rate(self._midway(batch), self.optimizer.recipe.warmup)
        if loaded.rows > before:  # loaded before memory ran out
            loaded = self._load(batch)
        while True:
            controls = from_host((rate, float(stop), float(self.state.micro_rows < before)), self.device)
            if self.model.shape.dropout:
                torch.manual_seed(seed_of(self.ctx.params.seed, f"dropout {number} {self.workers.rank}"))
            values = self.passes.run(self._compute, loaded, controls) if loaded.rows else None
            if values is not None:
                return Step(number + 1, batch, rate, self._own_flops(loaded), *to_host(values))
            self._halve_rows(batch)
            loaded = self._load(batch)

    def _compute(self, loaded: Loaded, controls: Tensor) -> Tensor | None:
        """Compute the gradient, summed over all workers. Update the weights if gradient and losses are finite.

        controls: [rate, stop, shrunk]; for the last two see `Totals`. Return the values of `Totals`, then the norm of
        the gradient; None if memory ran out.
        """
        buffers = self.optimizer.buffers
        self.optimizer.zero_grad()
        try:
            sums = self.passes.gradient(loaded)
        except RuntimeError as error:
            if out_of_memory(error):
                return None
            raise
        buffers.set_totals(sums, controls[1:])
        self.passes.reduce(loaded.batch, buffers)
        values = torch.cat((buffers.totals, self.optimizer.clip()[None]))
        self.optimizer.step(controls[0], loaded.batch.active, values.isfinite().all())
        return values

    def _read(self, unread: deque[Step], late: int) -> list[Step]:
        """Read and record the results of the oldest unread steps, until `late` steps are unread. Return the read steps.

        Raises NonFiniteLoss.
        """
        read = []
        while len(unread) > late:
            step = unread.popleft()
            await_device(step.ready, shared=self.workers.size > 1)
            *sums, step.norm = step.values.tolist()
            totals, batch = Totals(*sums), step.batch
            if totals.shrunk:  # Use the smallest number on all workers, because one checkpoint holds the state of all.
                self.state.micro_rows = self.workers.least(self.state.micro_rows, self.device)
                if not self.ctx.rank:
                    self.ctx.report.event("memory.stepped_down", step=step.number, rows=self.state.micro_rows)
            step.stop = totals.stop > 0
            step.losses = {
                "mlm": totals.mlm / batch.masked if batch.masked and batch.mlm_weight else None,
                "task": totals.task / batch.documents if batch.task_weight else None,
            }
            if not self._finite(step):
                step.losses = dict.fromkeys(step.losses)
            self._record(step)
            read.append(step)
        return read

    def _halve_rows(self, batch: Batch) -> None:
        """Halve the number of rows in this worker's micro-batches. Raises OutOfMemory if the number is 1."""
        rows = min(self.state.micro_rows, len(batch.rows))
        if rows == 1:
            raise OutOfMemory(
                f"Step {self.state.step + 1}: one row of {self.model.shape.max_length} tokens exceeds the device's "
                "memory. Use a smaller model or a smaller model.max_length."
            )
        self.state.micro_rows = rows // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _finite(self, step: Step) -> bool:
        """Return whether losses and gradient are finite. If not, count a skip or, at the limit, raise NonFiniteLoss."""
        state, number = self.state, step.number
        if all(math.isfinite(value) for value in (*step.losses.values(), step.norm) if value is not None):
            return True
        texts = {name: None if value is None else str(value) for name, value in step.losses.items()}
        sources = step.batch.sources()
        limit = max(SKIPS, int(SKIPPED_SHARE * (number - 1)))
        if self.optimizer.recipe.non_finite == "stop" or state.skipped >= limit:
            checkpoint = self._newest_checkpoint()
            newest = f"The newest checkpoint is of step {checkpoint}." if checkpoint else "There is no checkpoint."
            raise NonFiniteLoss(
                f"The loss or its gradient is not finite at step {number}. Lower the learning rate, or check the "
                f"texts of this batch ({', '.join(sources[:3])}, ...). {newest}",
                step=number,
                losses=texts,
                sources=sources,
                checkpoint=checkpoint,
            )
        state.skipped += 1
        if not self.ctx.rank:
            self.ctx.report.event("step.skipped", step=number, losses=texts, sources=sources[:100])
        return False

    def _newest_checkpoint(self) -> int | None:
        """Return the step of the newest checkpoint, or None.

        All ranks wait until rank 0 has read the step, because the first rank that raises an error ends all ranks.
        """
        newest = self.ctx.checkpoints.newest()
        self.workers.least(0, self.device)
        return self.ctx.checkpoints.newest() if self.ctx.rank else newest

    def _count_seconds(self, since: float) -> float:
        """Add the time since the clock showed `since` to the state. Return the current time of the clock."""
        now, state = self.clock(), self.state
        seconds = state.seconds + now - since
        if self.budget.unit == "seconds" and self.workers.size > 1:  # all workers must end at the same step
            seconds = float(self.workers.first(torch.tensor([seconds], dtype=torch.float64, device=self.device)))
        state.worker_seconds += (seconds - state.seconds) * self.workers.size
        state.seconds = seconds
        return now

    def _record(self, step: Step) -> None:
        """Add the losses of a step to the history, which has about POINTS points of mean losses."""
        state = self.state
        state.means.add(step.losses)
        point = int(step.progress * POINTS)
        if point <= state.last_point:
            return
        values = {**state.means.as_dict(), "rate": step.rate, "gradient_norm": _finite_or_none(step.norm)}
        state.points.append({"step": step.number, "tokens": step.tokens, **values})
        state.means, state.last_point = LossMeans(), point

    def _evaluate(self) -> None:
        """Validate. Without `curve`, copy the weights if their scores `rank` highest so far."""
        assert self.validate is not None
        state, scores = self.state, self.validate(self)
        state.evaluations.append({"step": state.step, **scores})
        if not self.ctx.rank:
            self.ctx.report.metrics(step=state.step, score=scores["score"], validation_loss=scores["loss"])
        if not self.curve and (state.best is None or rank(scores) > rank(state.evaluations[state.best])):
            state.best = len(state.evaluations) - 1
            self.best = weights(self.model)

    def _checkpoint(self) -> None:
        if self.ctx.rank:
            return
        write = checkpoint_writer(self.state, self.model, self.optimizer, self.best)
        point = self.state.points[-1]  # the first step adds one
        metrics = {name: point[name] for name in ("mlm", "task")}
        self.ctx.checkpoints.save(write, step=self.state.step, metrics=metrics)


def from_host(values: Sequence[float], device: torch.device) -> Tensor:
    """Return the values as a tensor on the device, without waiting for the device."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=torch.float64)
    return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)


def to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Return a copy of the values in the host's memory, and the event after which the copy is complete.

    On a CPU, return the values themselves, and None as the event.
    """
    if not values.is_cuda:
        return values, None
    copy = torch.empty_like(values, device="cpu", pin_memory=True)
    copy.copy_(values, non_blocking=True)
    return copy, torch.cuda.current_stream(values.device).record_event()


def await_device(ready: torch.cuda.Event | None, *, shared: bool) -> None:
    """Wait for the event, if any. shared: whether other workers exist, which may compile for a long time."""
    began = time.monotonic()
    while ready is not None and not ready.query():
        if shared and time.monotonic() - began > PATIENCE:
            PULSE.cool_down()
        time.sleep(POLL)


def _finite_or_none(value: float) -> float | None:
    """Return `value`, or None for NaN and infinity, which JSON cannot represent."""
    return value if math.isfinite(value) else None


class _Progress:
    """Reports the progress of each step on rank 0. stop: whether the reporter requests a stop.

    Points of the metric series are at least REPORT_SECONDS apart. After 500 s, this interval grows with the elapsed
    time, so that a long run has few points. The losses of a point are means since the previous point.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._began = trainer.clock()
        self._last = self._began - REPORT_SECONDS
        self._counts: dict[str, float] = {}  # tokens and FLOPs of the run at the last point
        self._tokens_per_second: float | None = None
        self._means = LossMeans()
        self._total = 0
        self._used = {"mfu": 0.0, "hardware_utilization": 0.0}  # FLOPs by the metric that counts them
        self._peak = peak_flops(trainer.device) if trainer.needed_flops else None
        self.stop = False

    def count(self, step: Step) -> None:
        """Count the FLOPs of a step for `mfu` (needed FLOPs, per worker) and `hardware_utilization` (this worker's)."""
        trainer = self._trainer
        if self._peak is not None and trainer.needed_flops is not None:
            self._used["mfu"] += trainer.needed_flops(step.batch) / trainer.ctx.world_size
            self._used["hardware_utilization"] += step.flops

    def tick(self, step: Step) -> None:
        """Report a step, and set `stop`."""
        ctx, state = self._trainer.ctx, self._trainer.state
        if ctx.rank:
            return
        self._means.add(step.losses)
        now = self._trainer.clock()
        if now - self._last >= REPORT_SECONDS * max(1.0, (now - self._began) / 500):
            self._point(now, step)
        progress = min(1.0, state.progress(self._trainer.budget))
        self.stop = not ctx.report.progress(
            step=step.number,
            total=self._total_steps(state.step, progress),
            rate=self._tokens_per_second,
            unit="tokens",
            eta_seconds=state.seconds * (1 - progress) / progress,
        )

    def _total_steps(self, step: int, progress: float) -> int:
        """Return the expected number of steps of the run. Changes of at most the share _STEADY do not alter the result.

        The expectation varies, because steps on passages and on task texts use different shares of the budget.
        """
        expected = step / progress
        if progress >= 1 or abs(expected - self._total) > _STEADY * self._total:
            self._total = round(expected)
        self._total = max(self._total, step)
        return self._total

    def _point(self, now: float, step: Step) -> None:
        trainer, state, seconds = self._trainer, self._trainer.state, now - self._last
        before, self._last = self._counts, now
        self._counts = {"tokens": state.tokens, "flops": state.flops, **self._used}
        rates = {name: (self._counts[name] - count) / seconds for name, count in before.items()} if seconds else {}
        self._tokens_per_second = rates.get("tokens", self._tokens_per_second)
        utilization = {} if self._peak is None or not rates else {name: rates[name] / self._peak for name in self._used}
        trainer.ctx.report.metrics(
            step=step.number,
            tokens=step.tokens,
            **self._means.as_dict(),
            learning_rate=step.rate * trainer.optimizer.recipe.lr,
            gradient_norm=_finite_or_none(step.norm),
            tokens_per_second=self._tokens_per_second,
            gflops_per_second=rates["flops"] / 1e9 if rates else None,
            **utilization,
        )
        self._means = LossMeans()
