"""A short measurement of training speed. Estimates of jobs use the result until a job has run on the device."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from tlm_core.training.recipe import Precision, cpu_facts, resolve

# Metadata key of an artifact: CPU time of the stage's main thread / (elapsed time * reserved share of a core), up to 1.
HAD_CORE = "had_core"
SECONDS = 1.0  # No step starts after this time. A slow device still runs two steps.
_LENGTH, _VOCABULARY, _MASKED = 128, 8192, 32  # tokens of a row, entries of the vocabulary, masked tokens of a row


def device_kind(*, gpu: bool) -> str:
    """Return the name of the GPU, or of the processor with the number of CPUs that this process may use."""
    if gpu:
        import torch

        return torch.cuda.get_device_name()
    names = (line.partition(":")[2].strip() for line in cpu_facts() if line.startswith("model name"))
    return f"{next(names, os.uname().machine)}, {len(os.sched_getaffinity(0))} CPUs"


def flop_of(precision: str) -> str:
    """Return the name of the rate that `seconds_per_flop` measures, such as `flop/bf16`."""
    return f"flop/{precision}"


def rate_name(rate: str, device: str) -> str:
    """Return the key of a rate among the stored rates, such as `flop/bf16 on NVIDIA H200`."""
    return f"{rate} on {device}"


def seconds_per_flop(precision: Precision, *, gpu: bool) -> float:
    """Return the seconds per FLOP of the fastest of several training steps. Other work may slow the other steps.

    The model has the scale small on a GPU, and tiny on a CPU. Steps on a CPU have few rows, so that a busy machine also
    finishes soon. On several cores, other work can slow each step, because the threads of a step wait for each other.
    Therefore, some steps on a CPU use a single thread, and only the CPU time of this thread counts.
    """
    import torch

    if gpu or (threads := torch.get_num_threads()) == 1:
        return _fastest(precision, time.perf_counter, gpu=gpu)
    on_all = _fastest(precision, time.perf_counter, gpu=False)
    torch.set_num_threads(1)
    try:
        return min(on_all, _fastest(precision, time.process_time, gpu=False))
    finally:
        torch.set_num_threads(threads)


def _fastest(precision: Precision, clock: Callable[[], float], *, gpu: bool) -> float:
    """Return the seconds per FLOP of the fastest step. clock: returns seconds."""
    import torch

    from tlm_core.training import flops
    from tlm_core.training.architectures import scratch_shape
    from tlm_core.training.device import autocast
    from tlm_core.training.model import TaskModel, initialize

    device = torch.device("cuda" if gpu else "cpu")
    scale, rows = ("small", 16) if gpu else ("tiny", 2)
    recipe, masked = resolve("fast", scale, {"model.max_length": _LENGTH}), rows * _MASKED
    shape = scratch_shape(recipe.model, _VOCABULARY, 2)
    model = TaskModel(shape)
    initialize(model, 0)
    model.to(device)
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(_VOCABULARY, (rows, _LENGTH), generator=draws).to(device)
    positions = torch.arange(_LENGTH, device=device).expand(rows, -1)
    segments, types = torch.ones_like(tokens), torch.zeros_like(tokens)
    times, begun = list[float](), clock()
    while len(times) < 2 or clock() - begun < SECONDS:  # The first step also allocates memory.
        start = clock()
        with autocast(precision, device):
            hidden = model.encoder(tokens, segments, positions, types).flatten(0, 1)[:masked]
            loss = model.vocabulary.loss(hidden, tokens.flatten()[:masked], masked)
        loss.backward()
        loss.item()
        if gpu:
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times) / (flops.FORWARD_AND_BACKWARD * flops.forward(shape, rows, _LENGTH, masked, 0))
