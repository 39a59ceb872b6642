"""Batches of the coming steps, which a thread draws and loads while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from tlm_core.training.prepared import Batch
from tlm_core.training.recipe import Budget
from tlm_core.training.state import TrainState

if TYPE_CHECKING:
    from tlm_core.training.passes import Loaded


def batches_ahead(
    draw: Callable[[int, float], Batch],
    load: Callable[[Batch], Loaded],
    flops: Callable[[Batch], float],
    state: TrainState,
    budget: Budget,
    count: int,
) -> Generator[Loaded, None, None]:
    """Yield the loaded batch of each step. A thread draws and loads `count` batches in advance.

    draw: (step, progress) → batch. flops: returns the FLOPs of a step. state: the state of the run, which the caller
    advances. A budget in seconds allows no batch in advance, because elapsed time determines the progress of steps.
    """
    while budget.unit == "seconds" or not count:
        yield load(draw(state.step, state.progress(budget)))
    coming = TrainState(step=state.step, tokens=state.tokens, flops=state.flops)

    def load_next() -> Loaded:
        batch = draw(coming.step, min(1.0, coming.progress(budget)))
        coming.count(batch.real_tokens, flops(batch))
        return load(batch)

    batches: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        try:
            while True:
                while len(batches) <= count:
                    batches.append(pool.submit(load_next))
                yield batches.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
