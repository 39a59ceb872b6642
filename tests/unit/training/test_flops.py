"""FLOPs against the counter of PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.training.made import made_prepared, tiny
from tlm_core.training.encoder_stages import build
from tlm_core.training.flops import FORWARD_AND_BACKWARD, forward
from tlm_core.training.objective import Workers, accumulate_gradient, needed_flops, step_flops
from tlm_core.training.optim import FlatOptimizer
from tlm_core.training.prepared import JointBatches, Prepared


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
@pytest.mark.parametrize("rho1", [0, 9])
def test_flops_match_the_counter_of_torch(architecture: str, rho1: float, tmp_path: Path) -> None:
    recipe = tiny(model__architecture=architecture, model__hidden=64, joint__rho1=rho1)
    prepared = Prepared(made_prepared(tmp_path, recipe))
    model = build(recipe.model, prepared, 0)
    optimizer = FlatOptimizer(model, recipe.joint.optimizer, ("encoder", "vocabulary", "task"))
    batch = JointBatches(prepared, recipe.joint, 0)(0, 0.0)
    # The counter does not support the CPU's fused attention kernel. The plain one has the same products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        accumulate_gradient(model, batch, Workers(), 64, "fp32", torch.device("cpu"))
        optimizer.step(1.0, batch.active)
    total = step_flops(model.shape, batch) + optimizer.flops
    assert total == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_needed_flops_are_those_of_each_document_alone(tmp_path: Path) -> None:
    recipe = tiny(joint__rho1=0)
    prepared = Prepared(made_prepared(tmp_path, recipe))
    shape = build(recipe.model, prepared, 0).shape
    batch = JointBatches(prepared, recipe.joint, 0)(0, 0.0)
    lengths = prepared.split("train").store.lengths[batch.rows.documents]
    alone = sum(forward(shape, 1, int(length), 0, 1, 1) for length in lengths) + forward(shape, 0, 0, batch.masked, 0)
    assert needed_flops(shape, batch) == FORWARD_AND_BACKWARD * alone
    assert sorted(batch.rows.lengths) == sorted(lengths)
