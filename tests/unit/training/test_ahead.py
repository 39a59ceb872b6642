"""Batches in the background: the same as without, in their order."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import pytest

from tlm_core.training.ahead import batches_ahead
from tlm_core.training.passes import Loaded
from tlm_core.training.prepared import Batch
from tlm_core.training.recipe import Budget
from tlm_core.training.state import TrainState


@dataclass
class Drawn:
    """A stand-in for a batch that records its draw."""

    step: int
    progress: float
    thread: int

    @property
    def real_tokens(self) -> int:
        return 10 + self.step


def draw(step: int, progress: float) -> Batch:
    if step == 7:
        raise RuntimeError("the text is damaged")
    return cast(Batch, Drawn(step, progress, threading.get_ident()))


def batches(count: int, budget: Budget, steps: int = 6) -> list[Drawn]:
    state, result = TrainState(step=1, tokens=10), []
    with closing(
        batches_ahead(draw, lambda batch: Loaded(batch, 1), lambda batch: 3.0 * batch.real_tokens, state, budget, count)
    ) as drawn:
        for _ in range(steps):
            batch = cast(Drawn, next(drawn).batch)
            state.count(batch.real_tokens, 3.0 * batch.real_tokens)
            result.append(batch)
    return result


@pytest.mark.parametrize("unit", ["steps", "tokens", "flops"])
def test_batches_ahead_equal_those_on_request(unit: str) -> None:
    budget = Budget(**{unit: 300})
    ahead, direct = batches(3, budget), batches(0, budget)
    assert [(b.step, b.progress) for b in ahead] == [(b.step, b.progress) for b in direct]
    assert {b.thread for b in direct} == {threading.get_ident()} and threading.get_ident() not in {
        b.thread for b in ahead
    }


def test_budget_of_seconds_draws_nothing_ahead() -> None:
    assert {b.thread for b in batches(3, Budget(seconds=60))} == {threading.get_ident()}


def test_error_in_the_background_ends_the_step_that_needs_it() -> None:
    assert len(batches(3, Budget(steps=300), steps=6)) == 6
    with pytest.raises(RuntimeError, match="damaged"):
        batches(3, Budget(steps=300), steps=7)
