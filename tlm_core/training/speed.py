"""How fast a device trains: a measurement of about a second. Estimates use it until a job has been measured."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from statistics import median

from tlm_core.training.recipe import Precision, cpu_facts, resolve

SECONDS = 1.0  # of a measurement
_ROWS, _LENGTH, _VOCABULARY, _MASKED = 16, 128, 8192, 512


def device_kind(*, gpu: bool) -> str:
    """Return the name of the GPU, or of the processor with the number of CPUs that this process may use."""
    if gpu:
        import torch

        return torch.cuda.get_device_name()
    names = (line.partition(":")[2].strip() for line in cpu_facts() if line.startswith("model name"))
    return f"{next(names, os.uname().machine)}, {len(os.sched_getaffinity(0))} CPUs"


def flop_of(precision: str) -> str:
    """Return the name of the rate that `seconds_per_flop` measures."""
    return f"flop/{precision}"


def rate_name(rate: str, device: str) -> str:
    """Return the name under which the store of rates holds a rate of a kind of device."""
    return f"{rate} on {device}"


def seconds_per_flop(precision: Precision, *, gpu: bool) -> float:
    """Return the median over some training steps of a small model: of scale small on a GPU, of tiny on a CPU."""
    import torch

    from tlm_core.training import flops
    from tlm_core.training.architectures import scratch_shape
    from tlm_core.training.device import autocast
    from tlm_core.training.model import TaskModel, initialize

    device = torch.device("cuda" if gpu else "cpu")
    recipe = resolve("fast", "small" if gpu else "tiny", {"model.max_length": _LENGTH})
    shape = scratch_shape(recipe.model, _VOCABULARY, 2)
    model = TaskModel(shape)
    initialize(model, 0)
    model.to(device)
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(_VOCABULARY, (_ROWS, _LENGTH), generator=draws).to(device)
    positions = torch.arange(_LENGTH, device=device).expand(_ROWS, -1)
    segments, types = torch.ones_like(tokens), torch.zeros_like(tokens)
    times = [time.perf_counter()]
    # The first step also allocates memory.
    while len(times) < 3 or times[-1] - times[0] < SECONDS:
        with autocast(precision, device):
            hidden = model.encoder(tokens, segments, positions, types).flatten(0, 1)[:_MASKED]
            loss = model.vocabulary.loss(hidden, tokens.flatten()[:_MASKED], _MASKED)
        loss.backward()
        loss.item()
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter())
    counted = flops.FORWARD_AND_BACKWARD * flops.forward(shape, _ROWS, _LENGTH, _MASKED, 0)
    return median(after - before for before, after in pairwise(times[1:])) / counted
