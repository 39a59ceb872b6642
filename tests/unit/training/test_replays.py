"""Which steps are recorded and replayed, with a recorder that needs no GPU. test_cuda.py has real recordings."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.training.made import made_prepared, tiny
from tlm_core.training import replays
from tlm_core.training.objective import Workers
from tlm_core.training.passes import Loaded
from tlm_core.training.prepared import JointBatches, Prepared
from tlm_core.training.replays import Replays
from tlm_core.training.stream import Documents, Sizes

CPU = torch.device("cpu")


class Recorder:
    """Stands for a CUDA graph."""

    count = 0

    def replay(self) -> None:
        Recorder.count += 1


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "count", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)


class Computed:
    """A step that stores its inputs. tight: the number of the call in which memory runs out."""

    def __init__(self, tight: int | None = None) -> None:
        self.seen: list[tuple[Loaded, Tensor]] = []
        self._tight = tight

    def __call__(self, loaded: Loaded, controls: Tensor) -> Tensor | None:
        self.seen.append((loaded, controls))
        return None if len(self.seen) == self._tight else controls + 1


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    recipe = tiny(joint__rho1=1)
    batches = JointBatches(Prepared(made_prepared(tmp_path, recipe)), recipe.joint, 3, Workers().share)
    batch = batches(0, 0.0)
    return Loaded(batch, 64, tuple(Documents.of(batch).parts(Sizes.of(8, 48, 0.5))))


def test_second_step_of_a_form_is_recorded_and_later_ones_are_replayed(loaded: Loaded) -> None:
    replay, compute = Replays(CPU), Computed()
    for number in range(4):
        tokens = torch.full_like(loaded.parts[0].tokens, number)
        step = replace(loaded, parts=(loaded.parts[0]._replace(tokens=tokens),))
        replay(compute, step, torch.tensor([float(number)]))
    assert len(compute.seen) == 2 and Recorder.count == 3
    recorded, controls = compute.seen[1]
    assert recorded.parts[0].tokens.tolist() == tokens.tolist(), "The recorded step reads the newest batch."
    assert controls.tolist() == [3.0] and recorded.ready is None


@pytest.mark.parametrize("change", ["size", "parts", "kind"])
def test_steps_of_another_form_are_not_replayed(loaded: Loaded, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replay, compute, controls = Replays(CPU), Computed(), torch.zeros(3)
    for _ in range(2):
        replay(compute, loaded, controls)
    if change == "size":
        monkeypatch.setattr(replays, "REPLAYED_TOKENS", 100)
    other = {
        "size": loaded,
        "parts": replace(loaded, parts=loaded.parts * 2),
        "kind": replace(loaded, batch=replace(loaded.batch, task_weight=1.0)),
    }[change]
    replay(compute, other, controls)
    assert len(compute.seen) == 3 and Recorder.count == 1


def test_steps_run_unrecorded_if_a_recording_exceeds_the_memory(loaded: Loaded) -> None:
    replay, compute = Replays(CPU), Computed(tight=2)
    results = [replay(compute, loaded, torch.full((3,), float(step))) for step in range(3)]
    assert [None if result is None else result[0] for result in results] == [1.0, 2.0, 3.0]
    assert Recorder.count == 0 and len(compute.seen) == 4, "only the second step was tried twice"


def test_error_in_a_recorded_step_is_raised(loaded: Loaded) -> None:
    replay = Replays(CPU)

    def fail(*_: Any) -> Tensor:
        raise RuntimeError("damaged batch")

    replay(Computed(), loaded, torch.zeros(3))
    with pytest.raises(RuntimeError, match="damaged batch"):
        replay(fail, loaded, torch.zeros(3))
