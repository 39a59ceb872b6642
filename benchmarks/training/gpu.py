"""Measure the joint step on a GPU: `fast` ("ours") and the published model at BERT-base size, and a small `fast`.

It prints a JSON line for each model, row length, and form (eager or compiled). `mfu` counts only the products that the
model needs; `hardware_utilization` also counts padding, unused mask positions and the optimizer. The passages are
random tokens with the lengths of real ones. Without a GPU each line has the reason instead of figures.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tlm_core.training.architectures import scratch_shape
from tlm_core.training.device import native_bf16, peak_flops
from tlm_core.training.local import LocalCheckpoints, LocalReporter
from tlm_core.training.loop import Trainer
from tlm_core.training.masking import NOT_MASKED, Vocabulary, mask_rows
from tlm_core.training.model import TaskModel, initialize
from tlm_core.training.objective import Workers, needed_flops, step_flops
from tlm_core.training.optim import FlatOptimizer
from tlm_core.training.packing import PassageStream
from tlm_core.training.params import JointParams
from tlm_core.training.prepared import Batch
from tlm_core.training.randomness import Stream, permutation
from tlm_core.training.recipe import Budget, Recipe, resolve
from tlm_core.training.stage import StageContext
from tlm_core.training.state import TrainState
from tlm_core.training.store import StoreWriter, TokenStore

VOCABULARY = Vocabulary(size=30_522, pad=0, mask=4, specials=(0, 1, 2, 3, 4))
LABELS = 7
LENGTHS = (128, 512)
BASE = {"layers": 12, "hidden": 768, "heads": 12}
# Model → recipe and shape. The gated block of `fast` is narrower, so that both models have equally many parameters.
MODELS = {
    "ours": ("fast", BASE | {"intermediate": 2048}),
    "published": ("paper", BASE | {"intermediate": 3072}),
    "fast_small": ("fast", {"layers": 6, "hidden": 384, "heads": 6, "intermediate": 768}),
}
TOKENS, SMALL_TOKENS = 65_536, 4096  # in a step; in a step of `fast_small`
NO_CHECKPOINTS = {"checkpoint_steps": 1_000_000}
STEPS, WARM, TRACED = 50, 8, 10
ATTENTION = ("flash", "fmha", "attention", "attn")  # in the names of attention kernels


def recipe(model: str, length: int, tokens: int) -> Recipe:
    """Return the recipe of a model with `tokens` tokens in a step."""
    name, shape = MODELS[model]
    size = {f"model.{key}": value for key, value in (shape | {"max_length": length, "dropout": 0.0}).items()}
    return resolve(name, "tiny", {**size, "joint.batch_rows": tokens // length, "precision": "bf16", **NO_CHECKPOINTS})


class Passages:
    """A function from a step to its batch: masked passages of random tokens. rate: the mask rate."""

    def __init__(self, folder: Path, recipe: Recipe, length: int, rate: float) -> None:
        random = np.random.default_rng(0)
        lengths = np.clip(random.lognormal(5.0, 0.5, 20_000), 10, 512).astype(int)
        with StoreWriter(folder, "passages", VOCABULARY.size) as store:
            store.add([random.integers(5, VOCABULARY.size, size).tolist() for size in lengths])
        order = partial(permutation, 0, Stream.PASSAGES, n=len(lengths))
        self._stream = PassageStream(TokenStore(folder, "passages"), length, order)
        self._rows, self._rate = recipe.joint.batch_rows, rate

    def __call__(self, step: int, progress: float) -> Batch:  # noqa: ARG002
        rows = self._stream.rows(step * self._rows, self._rows)
        tokens, targets = mask_rows(rows, VOCABULARY, self._rate, 0, step)
        masked = int(np.count_nonzero(targets != NOT_MASKED))
        labels = np.zeros(0, np.int64)
        return Batch(rows, tokens, targets, labels, masked, 0, 1.0, 0.0, list, "cross_entropy")


def trainer(recipe: Recipe, length: int, folder: Path, *, compiled: bool, device: torch.device) -> Trainer:
    """Return the trainer of a joint stage on random passages. Its forward and backward passes are those for GPUs."""
    from tlm_core.training.stream_passes import StreamPasses

    rate = recipe.joint.highest_mask_rate
    model = TaskModel(scratch_shape(recipe.model, VOCABULARY.size, LABELS)).to(device)
    initialize(model, 0)
    optimizer = FlatOptimizer(
        model, recipe.joint.optimizer, ("encoder", "vocabulary", "task"), precision=recipe.number_format
    )
    checkpoints = LocalCheckpoints(folder / "checkpoints")
    return Trainer(
        ctx=StageContext({}, JointParams.of(recipe, 0), folder, LocalReporter(), checkpoints),
        model=model,
        optimizer=optimizer,
        batches=Passages(folder, recipe, length, rate),
        budget=Budget(steps=WARM),
        device=device,
        step_flops=partial(step_flops, model.shape),
        passes=StreamPasses(model, optimizer, Workers(), device, "cross_entropy", rate, recipe.number_format, compiled),
        needed_flops=partial(needed_flops, model.shape),
    )


def busy(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals (begin, end)."""
    total, last = 0.0, -np.inf
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, last))
        last = max(last, end)
    return float(total)


def traced(trainer: Trainer) -> dict[str, object]:
    """Run WARM steps, and TRACED steps under the profiler. Return the GPU's idle share and the attention kernels."""
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    steps = itertools.count()
    trainer.before_step = lambda: profiler.start() if next(steps) == WARM else None
    trainer.budget = Budget(steps=WARM + TRACED)
    trainer.run()
    torch.cuda.synchronize()
    profiler.stop()
    kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spans = [(event.time_range.start, event.time_range.end) for event in kernels]
    names = {event.name for event in kernels if any(part in event.name.lower() for part in ATTENTION)}
    whole = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return {"idle_share": 1 - busy(spans) / whole, "attention_kernels": sorted(name[:80] for name in names)}


def measured(trainer: Trainer) -> dict[str, object]:
    """Return the figures of a run of STEPS steps after a warm-up. The peak memory is that of the last step."""
    trainer.run()
    trainer.before_step = torch.cuda.reset_peak_memory_stats
    trainer.budget = Budget(steps=STEPS)
    state, _ = trainer.run()
    memory = {"peak_memory_bytes": torch.cuda.max_memory_allocated(), "rows_at_once": state.micro_rows}
    rate = {"tokens_per_second": state.tokens / state.seconds}
    return {**rate, **utilization(trainer, STEPS, state), **memory, **traced(trainer)}


def utilization(trainer: Trainer, steps: int, state: TrainState) -> dict[str, float | None]:
    """Return `mfu` and `hardware_utilization` of a run; None if the card's peak is unknown."""
    assert trainer.needed_flops is not None
    batch, peak = trainer.batches(0, 0.0), peak_flops(trainer.device)
    launched = trainer.passes.load(batch, state.micro_rows).flops
    assert launched is not None
    counts = {"mfu": trainer.needed_flops(batch), "hardware_utilization": launched + trainer.optimizer.flops}
    return {name: None if peak is None else steps * count / state.seconds / peak for name, count in counts.items()}


def lines() -> Iterator[dict[str, object]]:
    """Yield the JSON line for each model, row length, and form (eager or compiled)."""
    reason = "no GPU on this machine" if not torch.cuda.is_available() else None
    if reason is None and not native_bf16(torch.device("cuda")):
        reason = f"{torch.cuda.get_device_name()} does not compute bf16 natively"
    for model, length, form in itertools.product(MODELS, LENGTHS, ("eager", "compiled")):
        step = SMALL_TOKENS if model == "fast_small" else TOKENS
        line: dict[str, object] = {"name": f"gpu_{model}_{length}_{form}", "tokens_in_a_step": step}
        if reason is not None:
            yield {**line, "reason": reason}
            continue
        with tempfile.TemporaryDirectory(prefix="tlm-bench-") as folder:
            chosen, device = recipe(model, length, step), torch.device("cuda", 0)
            run = trainer(chosen, length, Path(folder), compiled=form == "compiled", device=device)
            yield {**line, "device": torch.cuda.get_device_name(), **measured(run)}


if __name__ == "__main__":
    for line in lines():
        print(json.dumps(line), flush=True)
