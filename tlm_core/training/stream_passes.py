"""Forward and backward passes of a step on a stream of tokens.

Documents have no padding between them, and the host does not wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tlm_core.pulse import PULSE
from tlm_core.training.buckets import Buckets
from tlm_core.training.memory import MICRO_ROWS, largest_rows
from tlm_core.training.model import TaskModel
from tlm_core.training.objective import Workers, own_rows
from tlm_core.training.optim import Buffers, FlatOptimizer
from tlm_core.training.passes import Compute, Loaded, kinds
from tlm_core.training.prepared import Batch
from tlm_core.training.replays import Replays
from tlm_core.training.stream import Documents, Part, Sizes, StreamLoss, StreamStart, launched_flops, rows_of_part

# The maximum number of graphs that a run compiles. A run needs few: see `stream.rows_of_part`.
GRAPHS = 64
USABLE = 0.9  # share of a GPU's free memory that micro-batches may use
# (weights by name, part, compute MLM?, compute task?, class weights) → the result of `StreamLoss`.
Run = Callable[[dict[str, Tensor], Part, bool, bool, Tensor | None], tuple[Tensor, Tensor]]


def _of_model(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": leaf for name, leaf in leaves.items()}


@dataclass
class StreamPasses:
    """Passes over streams of tokens, with the methods of `RowPasses`. The host does not wait for the device in a step.

    loss: the task's loss, a key of `objective.LOSSES`. mask_rate: the highest mask rate of the run. precision: with
    "bf16", the passes read bfloat16 copies of the weights. compiled: whether to compile the passes. Compiling takes
    minutes, which is too long for finetuning.
    """

    model: TaskModel
    optimizer: FlatOptimizer
    workers: Workers
    device: torch.device
    loss: str
    mask_rate: float = 0.0
    precision: str = "bf16"
    compiled: bool = True
    ahead: int = 3
    late: int = 1

    def __post_init__(self) -> None:
        shape = self.model.shape
        # Several workers sum the gradients of the last layers during the backward pass of the first layers.
        first = shape.layers // 2 if self.workers.size > 1 else 0
        self._first = StreamStart(self.model, shape.max_length, first) if first else None
        self._module = StreamLoss(self.model, self.loss, shape.max_length, first)
        self._leaves = self.optimizer.leaves(torch.bfloat16 if self.precision == "bf16" else torch.float32)
        self._sequences: dict[tuple[int, bool, bool], int] = {}  # sequences of a part, by tokens and losses
        self._compiled: Run | None = None
        self._seen: set[tuple[object, ...]] = set()  # the forms of parts that are compiled
        self._replays = Replays(self.device) if self.device.type == "cuda" and self.workers.size == 1 else None
        self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._buckets: Buckets | None = None
        self._reducing = False  # whether this backward pass is the last of its step
        if self.workers.size > 1:
            gradient, dtype = self.optimizer.buffers.gradient, self._leaves["encoder.tokens.weight"].dtype
            self._buckets = Buckets(gradient, list(self.model.named_parameters()), self.workers, dtype)
            for name, leaf in self._leaves.items():
                leaf.register_hook(partial(self._complete, name))

    def first_rows(self, sample: Callable[[], Batch]) -> int:
        """Return the maximum number of rows in a micro-batch. On a GPU, trial passes over `sample()` measure memory."""
        if self.device.type != "cuda":
            return MICRO_ROWS
        batch = sample()
        own = len(own_rows(batch, self.workers).rows)
        if not own:
            return MICRO_ROWS
        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)
        held = torch.cuda.memory_allocated(self.device)
        rows = largest_rows(partial(self._peak, batch), held, int(USABLE * free), own)
        torch.cuda.empty_cache()
        # If all rows fit, a larger limit is safe, because a part never has more rows than the step.
        return rows if rows < own else max(rows, MICRO_ROWS)

    def _peak(self, batch: Batch, rows: int) -> int:
        """Return the peak memory in bytes of an eager pass over `rows` rows. A compiled pass needs at most as much."""
        torch.cuda.reset_peak_memory_stats(self.device)
        loaded = self.load(batch, rows)
        self._wait(loaded)
        self._add(loaded, loaded.parts[0], self._run)
        return torch.cuda.max_memory_allocated(self.device)

    def load(self, batch: Batch, rows: int) -> Loaded:
        own = own_rows(batch, self.workers)
        if not len(own.rows):
            return Loaded(batch, rows, flops=0.0)
        documents, length = Documents.of(own), batch.tokens.shape[1]
        needed = -(-len(documents.tokens) // length)
        sizes = Sizes.of(rows_of_part(needed, rows), length, self.mask_rate)
        weights = None if batch.class_weights is None else torch.from_numpy(batch.class_weights)
        form = (sizes.tokens, *kinds(batch))
        drawn = documents.parts(sizes, self._sequences.get(form, 0))
        self._sequences[form] = len(drawn[0].begins) - 1
        flops = sum(launched_flops(self.model.shape, part, *kinds(batch)) for part in drawn)
        with torch.cuda.stream(self._side):
            parts = tuple(Part(*map(self._sent, part)) for part in drawn)
            weights = None if weights is None else self._sent(weights)
            ready = None if self._side is None else self._side.record_event()
        return Loaded(batch, rows, parts, weights, ready, flops)

    def _sent(self, tensor: Tensor) -> Tensor:
        return tensor if self._side is None else tensor.pin_memory().to(self.device, non_blocking=True)

    def gradient(self, loaded: Loaded) -> Tensor:
        self._wait(loaded)
        total = torch.zeros(2, device=self.device)
        for part in loaded.parts:
            PULSE.advance()
            self._reducing = self._buckets is not None and part is loaded.parts[-1]
            try:
                total += self._add(loaded, part, self._faster(part, loaded.batch) if self.compiled else self._run)
            finally:
                self._reducing = False
        return total

    def run(self, compute: Compute, loaded: Loaded, controls: Tensor) -> Tensor | None:
        if self._replays is None:
            return compute(loaded, controls)
        self._wait(loaded)
        return self._replays(compute, loaded, controls)

    def reduce(self, batch: Batch, buffers: Buffers) -> None:
        if self._buckets is not None:
            self._buckets.finish(batch.active)
            self.workers.sum(buffers.totals)

    def _add(self, loaded: Loaded, part: Part, run: Run) -> Tensor:
        """Add the gradient of a part to that of the parameters, in float32. Return the part's losses, [mlm, task]."""
        leaves = {name: leaf for name, leaf in self._leaves.items() if name.split(".")[0] in loaded.batch.active}
        loss, sums = run(self._leaves, part, *kinds(loaded.batch), loaded.class_weights)
        if self._reducing and self._buckets is not None:
            self._buckets.begin(loaded.batch.active)
        pairs = zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True)
        used = {name: gradient for name, gradient in pairs if gradient is not None}
        if used and not self._reducing:
            totals = [self.model.get_parameter(name).grad for name in used]
            # The first part is copied: one kernel copies all tensors, but each sum of two types is a kernel of its own.
            combine = torch._foreach_copy_ if part is loaded.parts[0] else torch._foreach_add_
            combine(totals, list(used.values()))
        return sums

    def _complete(self, name: str, gradient: Tensor) -> None:
        """Add `gradient` to the gradient of the parameter `name`, and start the sums of complete buckets.

        The backward pass calls this method for each gradient. The call has an effect only in the last part of a step.
        """
        if self._reducing and self._buckets is not None:
            total = self.model.get_parameter(name).grad
            assert total is not None, "gradients lie in the optimizer's buffer"
            total.add_(gradient)
            self._buckets.complete(name)

    def _run(
        self, leaves: dict[str, Tensor], part: Part, mlm: bool, task: bool, class_weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self._rest(leaves, part, mlm, task, class_weights, self._begin(leaves, part) if self._first else None)

    def _begin(self, leaves: dict[str, Tensor], part: Part) -> Tensor:
        assert self._first is not None
        return torch.func.functional_call(self._first, _of_model(leaves), (part,))

    def _rest(self, leaves: dict[str, Tensor], *arguments: object) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(self._module, _of_model(leaves), arguments)

    def _faster(self, part: Part, batch: Batch) -> Run:
        """Return the compiled `_run`. PyTorch caches compiled code on this machine's disk for later runs."""
        if self._compiled is None:
            torch._dynamo.config.recompile_limit = GRAPHS
            self._compiled = self._compile()
        form = (len(part.tokens), len(part.begins), *kinds(batch))
        if form not in self._seen:
            PULSE.cool_down()  # compiling takes as long as many steps
            self._seen.add(form)
        return self._compiled

    def _compile(self) -> Run:
        """Return `_run`, compiled as one graph. With several workers, the first layers and the rest are two graphs."""
        if self._first is None:
            return torch.compile(self._run, fullgraph=True, dynamic=False)
        begin = torch.compile(self._begin, fullgraph=True, dynamic=False)
        rest = torch.compile(self._rest, fullgraph=True, dynamic=False)
        return lambda leaves, part, *how: rest(leaves, part, *how, begin(leaves, part))

    def _wait(self, loaded: Loaded) -> None:
        """Make the coming kernels wait until the batch is on the device. This process does not wait."""
        if loaded.ready is None:
            return
        main = torch.cuda.current_stream(self.device)
        main.wait_event(loaded.ready)
        # The side stream may reuse the memory of these tensors only after the kernels of the main stream.
        for part in loaded.parts:
            for tensor in part:
                tensor.record_stream(main)
        if loaded.class_weights is not None:
            loaded.class_weights.record_stream(main)
