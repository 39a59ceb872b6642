"""The training loop that the joint and the finetune stage share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from tlm_core.errors import NonFiniteLoss, OutOfMemory
from tlm_core.tasks.metrics import better
from tlm_core.training.device import out_of_memory, peak_flops
from tlm_core.training.memory import MICRO_ROWS, rows_at_once, training_bytes
from tlm_core.training.model import TaskModel, seed_of
from tlm_core.training.objective import Workers, accumulate_gradient, step_flops
from tlm_core.training.optim import Optimizer, learning_rate
from tlm_core.training.prepared import Batch
from tlm_core.training.recipe import Budget as BudgetRecipe
from tlm_core.training.recipe import Optimizer as OptimizerRecipe
from tlm_core.training.stage import StageContext, StageParams, StopRequested
from tlm_core.training.state import TrainState, checkpoint_writer, load_checkpoint, weights

POINTS = 200
REPORT_SECONDS = 0.5
# Steps that a recipe may skip: so many, in a long run one in a hundred; with more the run itself is at fault.
SKIPS, SKIPPED_SHARE = 20, 0.01


@dataclass(frozen=True)
class Budget:
    """When a stage ends: `amount` of `unit`, one of steps, tokens, flops, seconds."""

    unit: str
    amount: float

    @classmethod
    def of(cls, recipe: BudgetRecipe) -> Budget:
        """From the recipe's budget, where exactly one unit is given."""
        ((unit, amount),) = ((unit, amount) for unit, amount in recipe if amount is not None)
        return cls(unit, float(amount))

    def progress(self, state: TrainState) -> float:
        """Share of the budget that is used up."""
        used = {"steps": state.step, "tokens": state.tokens, "flops": state.flops, "seconds": state.seconds}
        return float(used[self.unit] / self.amount)

    def midway(self, state: TrainState, step_tokens: int, step_flops: float) -> float:
        """Progress in the middle of the coming step: where the schedule is read, so no step has rate zero."""
        half = {"steps": 0.5, "tokens": step_tokens / 2, "flops": step_flops / 2, "seconds": 0.0}
        return min(1.0, self.progress(state) + half[self.unit] / self.amount)


@dataclass
class Trainer:
    """One stage's training run. batches: (step, progress) → batch. validate: scores the model, if the stage does.

    optimizer_recipe: the recipe's optimizer part. evaluate_at: steps (1-based) after which to validate. masked: the
    highest share of tokens that a step masks.
    """

    ctx: StageContext[StageParams]
    model: TaskModel
    optimizer: Optimizer
    optimizer_recipe: OptimizerRecipe
    batches: Callable[[int, float], Batch]
    budget: Budget
    seed: int
    precision: str
    checkpoint_steps: int
    device: torch.device
    validate: Callable[[], dict[str, float | None]] | None = None
    evaluate_at: frozenset[int] = frozenset()
    masked: float = 0.0
    clock: Callable[[], float] = time.perf_counter

    def run(self) -> tuple[TrainState, dict[str, Tensor] | None]:
        """Train to the end of the budget; returns the final state and the best weights by validation, if any.

        Raises StopRequested (a checkpoint is left), NonFiniteLoss, OutOfMemory.
        """
        workers = Workers(self.ctx.rank, self.ctx.world_size)
        state, best = self._start(workers)
        lr = self.optimizer_recipe.lr
        progress_report = _Progress(self.ctx, self.budget, lr, self.clock, peak_flops(self.device))
        counted = self.clock()
        if state.step == 0 and 0 in self.evaluate_at and not state.evaluations:
            best = self._evaluate(state, best)
        while (progress := self.budget.progress(state)) < 1.0:
            batch = self.batches(state.step, progress)
            cost = self._step_flops(batch)
            share = learning_rate(self.budget.midway(state, batch.rows.real_tokens, cost), self.optimizer_recipe.warmup)
            losses, stop, norm = self._gradient(batch, state, workers, progress_report.stop)
            if self._finite(batch, state, losses, norm, workers):
                self.optimizer.step(share, batch.active)
            state.step += 1
            state.tokens += batch.rows.real_tokens
            state.flops += cost
            if state.step in self.evaluate_at:
                best = self._evaluate(state, best)
            # From step to step, so that validation, copying a checkpoint and waiting for a slow storage count, too.
            now = self.clock()
            state.seconds, counted = self._agreed(state.seconds + now - counted, workers), now
            self._record(state, losses, share, norm)
            ended = self.budget.progress(state) >= 1.0
            if not ended and (stop or state.step % self.checkpoint_steps == 0):
                self._checkpoint(state, best)
            if stop and not ended:
                raise StopRequested(f"stopped on request after step {state.step}; resume to go on from there")
            progress_report.tick(state, losses, share, norm)
        state.seconds += self.clock() - counted
        return state, best

    def _start(self, workers: Workers) -> tuple[TrainState, dict[str, Tensor] | None]:
        folder = self.ctx.checkpoints.latest()
        if folder is not None:
            state, best = load_checkpoint(folder, self.model, self.optimizer)
        else:
            state, best = TrainState(), None
            if workers.size > 1:
                torch.distributed.broadcast(self.optimizer.buffers.value, src=0)
        # The machine on which a run goes on may hold fewer than the one that wrote the checkpoint.
        state.micro_rows = workers.least(min(state.micro_rows, self._first_rows()), self.device)
        return state, best

    def _first_rows(self) -> int:
        """Rows that this worker's memory is expected to hold at once."""
        count = partial(training_bytes, self.model.shape, self.optimizer.buffers.value.numel(), masked=self.masked)
        return rows_at_once(self.device.type, self.ctx.world_size, MICRO_ROWS, count)

    def _gradient(
        self, batch: Batch, state: TrainState, workers: Workers, stop: bool
    ) -> tuple[dict[str, float | None], bool, float]:
        """Fill the gradient, summed over all workers; returns mean losses, whether to stop, the gradient's norm."""
        before = state.micro_rows
        while (sums := self._own_gradient(batch, state, workers)) is None:
            self._step_down(batch, state)
        buffers = self.optimizer.buffers
        buffers.extras[:2] = sums
        buffers.extras[2] = float(stop)
        buffers.extras[3] = float(state.micro_rows < before)
        workers.sum(buffers.gradient)
        mlm, task, stops, tight = buffers.extras.tolist()
        if tight:
            self._agree_on_rows(state, workers)
        losses = {
            "mlm": mlm / batch.masked if batch.masked and batch.mlm_weight else None,
            "task": task / batch.documents if batch.task_weight else None,
        }
        return losses, stops > 0, self.optimizer.clip()

    def _own_gradient(self, batch: Batch, state: TrainState, workers: Workers) -> Tensor | None:
        """This worker's part of the gradient and its loss sums; None if the device's memory did not hold it."""
        self.optimizer.zero_grad()
        if self.model.shape.dropout:
            torch.manual_seed(seed_of(self.seed, f"dropout {state.step} {workers.rank}"))
        try:
            return accumulate_gradient(self.model, batch, workers, state.micro_rows, self.precision, self.device)
        except RuntimeError as error:
            if out_of_memory(error):
                return None
            raise

    def _step_down(self, batch: Batch, state: TrainState) -> None:
        """Halve the rows that are held at once; the step keeps all of its rows. Raises OutOfMemory at one row."""
        held = min(state.micro_rows, len(batch.rows))
        if held == 1:
            raise OutOfMemory(
                f"step {state.step}: not even one row of {self.model.shape.max_length} tokens fits the device; "
                "use a smaller model or a shorter max_length"
            )
        state.micro_rows = held // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _agree_on_rows(self, state: TrainState, workers: Workers) -> None:
        """All go on with the rows that the tightest of them holds: one checkpoint and one history tell for all."""
        state.micro_rows = workers.least(state.micro_rows, self.device)
        if not self.ctx.rank:
            self.ctx.report.event("memory.stepped_down", step=state.step, rows=state.micro_rows)

    def _finite(
        self, batch: Batch, state: TrainState, losses: dict[str, float | None], norm: float, workers: Workers
    ) -> bool:
        """Whether the step's losses and gradient are numbers. If not: raises NonFiniteLoss, or counts and says so."""
        if all(math.isfinite(value) for value in (*losses.values(), norm) if value is not None):
            return True
        told = {name: None if value is None else str(value) for name, value in losses.items()}
        sources = batch.sources()
        most = max(SKIPS, int(SKIPPED_SHARE * state.step))
        if self.optimizer_recipe.non_finite == "stop" or state.skipped >= most:
            checkpoint = self._newest_checkpoint(workers)
            kept = "none was due before it" if checkpoint is None else f"the last one is of step {checkpoint}"
            raise NonFiniteLoss(
                f"the loss or its gradient is not a number at step {state.step}; lower the learning rate "
                f"or look at the texts of this batch ({', '.join(sources[:3])}, ...). Of good checkpoints {kept}",
                step=state.step,
                losses=told,
                sources=sources,
                checkpoint=checkpoint,
            )
        state.skipped += 1
        losses.update(dict.fromkeys(losses))
        if not self.ctx.rank:
            self.ctx.report.event("step.skipped", step=state.step, losses=told, sources=sources[:100])
        return False

    def _newest_checkpoint(self, workers: Workers) -> int | None:
        """Its step, once the one that is being written is there: the first to raise ends the others."""
        found = self.ctx.checkpoints.newest()
        workers.least(0, self.device)
        return self.ctx.checkpoints.newest() if workers.rank else found

    def _step_flops(self, batch: Batch) -> float:
        return step_flops(self.model.shape, batch) + self.optimizer.flops

    def _agreed(self, seconds: float, workers: Workers) -> float:
        """Rank 0's clock, where the end of the stage hangs on it: all workers must end at the same step."""
        if workers.size == 1 or self.budget.unit != "seconds":
            return seconds
        shared = torch.tensor([seconds], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared)

    def _record(self, state: TrainState, losses: Mapping[str, float | None], share: float, norm: float) -> None:
        """Add to the history: about POINTS points in all, each the mean since the one before."""
        for name, value in losses.items():
            if value is not None:
                state.sums[name] = state.sums.get(name, 0.0) + value
                state.sums[f"{name}.steps"] = state.sums.get(f"{name}.steps", 0.0) + 1
        state.sums["steps"] = state.sums.get("steps", 0.0) + 1
        if int(self.budget.progress(state) * POINTS) <= state.sums.get("mark", -1):
            return
        means = {
            name: state.sums[name] / state.sums[f"{name}.steps"] if state.sums.get(f"{name}.steps") else None
            for name in ("mlm", "task")
        }
        told = {"rate": share, "gradient_norm": _number(norm)}
        state.points.append({"step": state.step, "tokens": state.tokens, **means, **told})
        state.sums = {"mark": float(int(self.budget.progress(state) * POINTS))}

    def _evaluate(self, state: TrainState, best: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Validate; the first best score wins ties."""
        assert self.validate is not None
        scores = self.validate()
        state.evaluations.append({"step": state.step, **scores})
        if not self.ctx.rank:
            self.ctx.report.metrics(step=state.step, score=scores["score"], validation_loss=scores["loss"])
        if state.best is not None and not better(scores["score"], state.evaluations[state.best]["score"]):
            return best
        state.best = len(state.evaluations) - 1
        return weights(self.model)

    def _checkpoint(self, state: TrainState, best: dict[str, Tensor] | None) -> None:
        if self.ctx.rank:
            return
        write = checkpoint_writer(state, self.model, self.optimizer, best)
        point = state.points[-1] if state.points else {}
        metrics = {name: point.get(name) for name in ("mlm", "task")}
        self.ctx.checkpoints.save(write, step=state.step, metrics=metrics)


def _number(value: float) -> float | None:
    """None for what is not a number, for which JSON has no form."""
    return value if math.isfinite(value) else None


class _Progress:
    """Tells the reporter how far the stage is at every step, so that it can stop it there; on rank 0.

    A point of the metric series comes at most every REPORT_SECONDS; its losses are means since the one before, its
    learning rate is AdamW's. lr: the peak of that.
    """

    def __init__(
        self,
        ctx: StageContext[StageParams],
        budget: Budget,
        lr: float,
        clock: Callable[[], float],
        peak: float | None = None,
    ) -> None:
        self._ctx = ctx
        self._budget = budget
        self._lr = lr
        self._clock = clock
        self._peak = peak
        self._last = clock() - REPORT_SECONDS
        self._done: tuple[float, int, float] | None = None
        self._rate: float | None = None
        self._losses: dict[str, list[float]] = {}
        self.stop = False

    def tick(self, state: TrainState, losses: Mapping[str, float | None], share: float, norm: float) -> None:
        if self._ctx.rank:
            return
        for name, value in losses.items():
            self._losses.setdefault(name, []).extend([] if value is None else [value])
        now = self._clock()
        if now - self._last >= REPORT_SECONDS:
            self._point(now, state, share, norm)
        share_done = min(1.0, self._budget.progress(state))
        keep_going = self._ctx.report.progress(
            step=state.step,
            total=max(state.step, round(state.step / share_done)),
            rate=self._rate,
            unit="tokens",
            eta_seconds=state.seconds * (1 - share_done) / share_done,
        )
        self.stop = not keep_going

    def _point(self, now: float, state: TrainState, share: float, norm: float) -> None:
        speed = None
        if self._done is not None and now > self._done[0]:
            since, tokens, flops = self._done
            self._rate, speed = (state.tokens - tokens) / (now - since), (state.flops - flops) / (now - since)
        self._last, self._done = now, (now, state.tokens, state.flops)
        losses, self._losses = self._losses, {}
        self._ctx.report.metrics(
            step=state.step,
            tokens=state.tokens,
            **{name: fmean(values) if values else None for name, values in losses.items()},
            learning_rate=share * self._lr,
            gradient_norm=_number(norm),
            tokens_per_second=self._rate,
            gflops_per_second=None if speed is None else speed / 1e9,
            **({} if self._peak is None or speed is None else {"mfu": speed / self._peak / self._ctx.world_size}),
        )
