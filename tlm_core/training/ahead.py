"""Batches of the coming steps, which a thread draws and loads while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from tlm_core.training.prepared import Batch
from tlm_core.training.recipe import Budget
from tlm_core.training.state import TrainState

if TYPE_CHECKING:
    from tlm_core.training.passes import Loaded


class Ahead:
    """Returns batches in order, and draws `count` of them in advance. If `count` is 0, it draws a batch on request.

    draw: (step, progress) → batch. load: prepares a batch for its passes. flops: returns the FLOPs of a step with a
    batch. state: the counts at the first step. With a budget of seconds, it draws no batch in advance, because
    the elapsed time determines the progress of later steps.
    """

    def __init__(
        self,
        draw: Callable[[int, float], Batch],
        load: Callable[[Batch], Loaded],
        flops: Callable[[Batch], float],
        state: TrainState,
        budget: Budget,
        count: int,
    ) -> None:
        self._draw, self._load, self._flops = draw, load, flops
        self._state, self._budget = state, budget
        self._count = 0 if budget.unit == "seconds" else count
        self._next = TrainState(step=state.step, tokens=state.tokens, flops=state.flops)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._coming: deque[Future[Loaded]] = deque()

    def __call__(self) -> Loaded:
        """Return the batch of the next step."""
        if not self._count:
            return self._load(self._draw(self._state.step, self._state.progress(self._budget)))
        while len(self._coming) <= self._count:
            self._coming.append(self._pool.submit(self._following))
        return self._coming.popleft().result()

    def _following(self) -> Loaded:
        batch = self._draw(self._next.step, min(1.0, self._next.progress(self._budget)))
        self._next.count(batch.real_tokens, self._flops(batch))
        return self._load(batch)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
