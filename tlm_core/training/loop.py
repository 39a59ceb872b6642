"""The training loop of the joint and the finetune stage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tlm_core.errors import NonFiniteLoss, OutOfMemory
from tlm_core.pulse import PULSE
from tlm_core.tasks.metrics import better
from tlm_core.training.device import out_of_memory, peak_flops
from tlm_core.training.memory import MICRO_ROWS, rows_at_once
from tlm_core.training.model import TaskModel, seed_of
from tlm_core.training.objective import Workers, accumulate_gradient
from tlm_core.training.optim import FlatOptimizer, learning_rate
from tlm_core.training.params import TrainParams
from tlm_core.training.prepared import Batch
from tlm_core.training.recipe import Budget
from tlm_core.training.stage import StageContext, StopRequested
from tlm_core.training.state import LossMeans, StepLosses, TrainState, checkpoint_writer, load_checkpoint, weights

POINTS = 200
REPORT_SECONDS = 0.5
# A recipe may skip this many steps, and in a long run this share of them. More mean that the run itself is wrong.
SKIPS, SKIPPED_SHARE = 20, 0.01


@dataclass
class Trainer:
    """One stage's training run.

    batches: (step, progress) → batch. step_flops: FLOPs of a batch's forward and backward pass. memory: bytes of
    training with a number of rows; None if they are not estimated. validate: scores the model, if the stage does.
    evaluate_at: the steps (1-based; 0 is before the first) after which to validate.
    """

    ctx: StageContext[TrainParams]
    model: TaskModel
    optimizer: FlatOptimizer
    batches: Callable[[int, float], Batch]
    budget: Budget
    device: torch.device
    step_flops: Callable[[Batch], float]
    memory: Callable[[int], int] | None = None
    validate: Callable[[], dict[str, float | None]] | None = None
    evaluate_at: frozenset[int] = frozenset()
    clock: Callable[[], float] = time.perf_counter
    state: TrainState = field(default_factory=TrainState, init=False)
    best: dict[str, Tensor] | None = field(default=None, init=False)

    @property
    def workers(self) -> Workers:
        return Workers(self.ctx.rank, self.ctx.world_size)

    def run(self) -> tuple[TrainState, dict[str, Tensor] | None]:
        """Train to the end of the budget. Return the final state and the best weights by validation, if any.

        Raises StopRequested after it saves a checkpoint, NonFiniteLoss, and OutOfMemory.
        """
        self._start()
        with PULSE.pace(steady=True):
            return self._train()

    def _train(self) -> tuple[TrainState, dict[str, Tensor] | None]:
        state, report = self.state, _Progress(self)
        counted = self.clock()
        if state.step == 0 and 0 in self.evaluate_at and not state.evaluations:
            self._evaluate()
        while (progress := state.progress(self.budget)) < 1.0:
            batch = self.batches(state.step, progress)
            flops = self.step_flops(batch) + self.optimizer.flops
            rate = learning_rate(self._midway(batch, flops), self.optimizer.recipe.warmup)
            losses, stop, norm = self._gradient(batch, report.stop)
            if self._finite(batch, losses, norm):
                self.optimizer.step(rate, batch.active)
            else:
                losses = StepLosses()
            state.step += 1
            state.tokens += batch.rows.real_tokens
            state.flops += flops
            if state.step in self.evaluate_at:
                self._evaluate()
            # The time from step to step includes validation, the copy of a checkpoint, and waits for slow storage.
            now = self.clock()
            state.seconds, counted = self._agreed(state.seconds + now - counted), now
            self._record(losses, rate, norm)
            finished = state.progress(self.budget) >= 1.0
            if not finished and (stop or state.step % self.ctx.params.checkpoint_steps == 0):
                self._checkpoint()
            if stop and not finished:
                raise StopRequested(f"The stage stopped on request after step {state.step}. Resume to continue.")
            report.tick(losses, rate, norm)
            PULSE.warm_up()
        state.seconds += self.clock() - counted
        return state, self.best

    def _start(self) -> None:
        """Load the newest checkpoint, or begin with the same weights on all workers."""
        folder = self.ctx.checkpoints.latest()
        if folder is not None:
            self.state, self.best = load_checkpoint(folder, self.model, self.optimizer)
        else:
            self.state, self.best = TrainState(), None
            if self.workers.size > 1:
                torch.distributed.broadcast(self.optimizer.buffers.value, src=0)
        # The machine that resumes a run may hold fewer rows than the one that wrote the checkpoint.
        self.state.micro_rows = self.workers.least(min(self.state.micro_rows, self._first_rows()), self.device)

    def _first_rows(self) -> int:
        """Return how many rows this worker's memory is expected to hold."""
        if self.memory is None:
            return MICRO_ROWS
        return rows_at_once(self.device.type, self.ctx.world_size, MICRO_ROWS, self.memory)

    def _midway(self, batch: Batch, flops: float) -> float:
        """Return the progress in the middle of the coming step. The schedule uses it, so no step has rate zero."""
        half = {"steps": 0.5, "tokens": batch.rows.real_tokens / 2, "flops": flops / 2, "seconds": 0.0}
        return min(1.0, self.state.progress(self.budget) + half[self.budget.unit] / self.budget.amount)

    def _gradient(self, batch: Batch, stop: bool) -> tuple[StepLosses, bool, float]:
        """Compute the gradient, summed over all workers. Return mean losses, whether to stop, and the norm."""
        before = self.state.micro_rows
        while (sums := self._own_gradient(batch)) is None:
            self._halve_rows(batch)
        buffers = self.optimizer.buffers
        buffers.set_totals(sums, stop=stop, shrunk=self.state.micro_rows < before)
        self.workers.sum(buffers.gradient)
        totals = buffers.totals()
        if totals.shrunk:
            self._agree_on_rows()
        losses = StepLosses(
            mlm=totals.mlm / batch.masked if batch.masked and batch.mlm_weight else None,
            task=totals.task / batch.documents if batch.task_weight else None,
        )
        return losses, totals.stop > 0, self.optimizer.clip()

    def _own_gradient(self, batch: Batch) -> Tensor | None:
        """Compute this worker's part of the gradient. Return its loss sums, or None if memory ran out."""
        self.optimizer.zero_grad()
        params, workers, state = self.ctx.params, self.workers, self.state
        if self.model.shape.dropout:
            torch.manual_seed(seed_of(params.seed, f"dropout {state.step} {workers.rank}"))
        try:
            return accumulate_gradient(self.model, batch, workers, state.micro_rows, params.precision, self.device)
        except RuntimeError as error:
            if out_of_memory(error):
                return None
            raise

    def _halve_rows(self, batch: Batch) -> None:
        """Process half as many rows at once; the step still has all of its rows. Raises OutOfMemory at one row."""
        rows = min(self.state.micro_rows, len(batch.rows))
        if rows == 1:
            raise OutOfMemory(
                f"Step {self.state.step}: one row of {self.model.shape.max_length} tokens exceeds the device's memory. "
                "Use a smaller model or a shorter max_length."
            )
        self.state.micro_rows = rows // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _agree_on_rows(self) -> None:
        """Use the smallest number of rows on all workers, so that one checkpoint and one history describe all."""
        self.state.micro_rows = self.workers.least(self.state.micro_rows, self.device)
        if not self.ctx.rank:
            self.ctx.report.event("memory.stepped_down", step=self.state.step, rows=self.state.micro_rows)

    def _finite(self, batch: Batch, losses: StepLosses, norm: float) -> bool:
        """Return whether losses and gradient are finite. If not, count the skipped step, or raise NonFiniteLoss."""
        state, values = self.state, losses.as_dict()
        if all(math.isfinite(value) for value in (*values.values(), norm) if value is not None):
            return True
        texts = {name: None if value is None else str(value) for name, value in values.items()}
        sources = batch.sources()
        limit = max(SKIPS, int(SKIPPED_SHARE * state.step))
        if self.optimizer.recipe.non_finite == "stop" or state.skipped >= limit:
            checkpoint = self._newest_checkpoint()
            newest = "There is no checkpoint."
            if checkpoint is not None:
                newest = f"The newest checkpoint is of step {checkpoint}."
            raise NonFiniteLoss(
                f"The loss or its gradient is not finite at step {state.step}. Lower the learning rate, or check the "
                f"texts of this batch ({', '.join(sources[:3])}, ...). {newest}",
                step=state.step,
                losses=texts,
                sources=sources,
                checkpoint=checkpoint,
            )
        state.skipped += 1
        if not self.ctx.rank:
            self.ctx.report.event("step.skipped", step=state.step, losses=texts, sources=sources[:100])
        return False

    def _newest_checkpoint(self) -> int | None:
        """Return the step of the newest checkpoint. The others wait for rank 0, because the first error ends them."""
        newest = self.ctx.checkpoints.newest()
        self.workers.least(0, self.device)
        return self.ctx.checkpoints.newest() if self.ctx.rank else newest

    def _agreed(self, seconds: float) -> float:
        """Return rank 0's seconds if they decide the end of the stage: all workers must end at the same step."""
        if self.workers.size == 1 or self.budget.unit != "seconds":
            return seconds
        shared = torch.tensor([seconds], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared)

    def _record(self, losses: StepLosses, rate: float, norm: float) -> None:
        """Update the history: about POINTS points, each with the mean losses since the previous one."""
        state = self.state
        state.means.add(losses)
        point = int(state.progress(self.budget) * POINTS)
        if point <= state.last_point:
            return
        values = {**state.means.as_dict(), "rate": rate, "gradient_norm": _finite_or_none(norm)}
        state.points.append({"step": state.step, "tokens": state.tokens, **values})
        state.means, state.last_point = LossMeans(), point

    def _evaluate(self) -> None:
        """Validate, and copy the weights if the score is better than all before."""
        assert self.validate is not None
        state, scores = self.state, self.validate()
        state.evaluations.append({"step": state.step, **scores})
        if not self.ctx.rank:
            self.ctx.report.metrics(step=state.step, score=scores["score"], validation_loss=scores["loss"])
        if state.best is None or better(scores["score"], state.evaluations[state.best]["score"]):
            state.best = len(state.evaluations) - 1
            self.best = weights(self.model)

    def _checkpoint(self) -> None:
        if self.ctx.rank:
            return
        write = checkpoint_writer(self.state, self.model, self.optimizer, self.best)
        point = self.state.points[-1] if self.state.points else {}
        metrics = {name: point.get(name) for name in ("mlm", "task")}
        self.ctx.checkpoints.save(write, step=self.state.step, metrics=metrics)


def _finite_or_none(value: float) -> float | None:
    """Return None for NaN and infinity, which JSON cannot represent."""
    return value if math.isfinite(value) else None


@dataclass
class _Mark:
    """The counts at the last point of the metric series."""

    clock: float
    tokens: int
    flops: float


class _Progress:
    """Reports every step's progress on rank 0, and records whether the reporter asks to stop.

    A point of the metric series comes at most every REPORT_SECONDS. Its losses are means since the previous point.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._last = trainer.clock() - REPORT_SECONDS
        self._mark: _Mark | None = None
        self._tokens_per_second: float | None = None
        self._means = LossMeans()
        self.stop = False

    def tick(self, losses: StepLosses, rate: float, norm: float) -> None:
        ctx, state = self._trainer.ctx, self._trainer.state
        if ctx.rank:
            return
        self._means.add(losses)
        now = self._trainer.clock()
        if now - self._last >= REPORT_SECONDS:
            self._point(now, rate, norm)
        progress = min(1.0, state.progress(self._trainer.budget))
        self.stop = not ctx.report.progress(
            step=state.step,
            total=max(state.step, round(state.step / progress)),
            rate=self._tokens_per_second,
            unit="tokens",
            eta_seconds=state.seconds * (1 - progress) / progress,
        )

    def _point(self, now: float, rate: float, norm: float) -> None:
        trainer, state, mark = self._trainer, self._trainer.state, self._mark
        flops_per_second = None
        if mark is not None and now > mark.clock:
            self._tokens_per_second = (state.tokens - mark.tokens) / (now - mark.clock)
            flops_per_second = (state.flops - mark.flops) / (now - mark.clock)
        self._last, self._mark = now, _Mark(now, state.tokens, state.flops)
        means, self._means = self._means, LossMeans()
        peak = peak_flops(trainer.device)
        utilization = {}
        if peak is not None and flops_per_second is not None:
            utilization["mfu"] = flops_per_second / peak / trainer.ctx.world_size
        trainer.ctx.report.metrics(
            step=state.step,
            tokens=state.tokens,
            **means.as_dict(),
            learning_rate=rate * trainer.optimizer.recipe.lr,
            gradient_norm=_finite_or_none(norm),
            tokens_per_second=self._tokens_per_second,
            gflops_per_second=None if flops_per_second is None else flops_per_second / 1e9,
            **utilization,
        )
