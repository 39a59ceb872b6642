"""Steps as CUDA graphs, because the kernels of a small step run faster than the host can launch them one by one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tlm_core.pulse import PULSE
from tlm_core.training.device import out_of_memory
from tlm_core.training.passes import Compute, Loaded, kinds
from tlm_core.training.stream import Part

_log = logging.getLogger(__name__)

# Maximum size of recorded steps. The kernels of larger steps take longer to run than to launch.
REPLAYED_TOKENS = 16_384
# Maximum number of recordings in a run. A run needs few: see `stream.rows_of_part` and `stream.Sizes.sequences`.
RECORDINGS = 16


@dataclass(frozen=True)
class Recording:
    """A step, recorded as a CUDA graph. inputs: the tensors that the step reads. values: the tensor with its result."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    values: Tensor


class Replays:
    """Runs steps. The second step of each form is recorded as a CUDA graph, which later steps of this form replay.

    Steps have the same form if their inputs have the same shapes and they train the same losses. The first step of a
    form runs without a graph, because it compiles code and shows whether memory suffices. Steps of several parts, or of
    more than REPLAYED_TOKENS tokens, always run without a graph.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recordings: dict[tuple[object, ...], Recording | None] = {}
        self._pool = torch.cuda.graph_pool_handle()  # shared, because recordings never run at the same time
        self._enabled = True

    def __call__(self, compute: Compute, loaded: Loaded, controls: Tensor) -> Tensor | None:
        """Return the result of `compute(loaded, controls)`. A later call may overwrite the returned tensor."""
        if not self._enabled or len(loaded.parts) != 1 or len(loaded.parts[0].tokens) > REPLAYED_TOKENS:
            return compute(loaded, controls)
        inputs = [*loaded.parts[0], controls]
        if loaded.class_weights is not None:
            inputs.append(loaded.class_weights)
        form = (*(tensor.shape for tensor in inputs), *kinds(loaded.batch))
        if form not in self._recordings:
            if len(self._recordings) < RECORDINGS:
                self._recordings[form] = None
            return compute(loaded, controls)
        recording = self._recordings[form] or self._record(compute, loaded, inputs)
        if recording is None:
            return compute(loaded, controls)
        self._recordings[form] = recording
        PULSE.advance()
        for target, source in zip(recording.inputs, inputs, strict=True):
            target.copy_(source)
        recording.graph.replay()
        return recording.values

    def _record(self, compute: Compute, loaded: Loaded, inputs: list[Tensor]) -> Recording | None:
        """Record a step without running it. If memory runs out, return None, and record no more steps."""
        own = [tensor.clone() for tensor in inputs]
        count = len(Part._fields)
        weights = None if loaded.class_weights is None else own[-1]
        # `ready` is None, because the copies above already wait for the batch.
        step = replace(loaded, parts=(Part(*own[:count]),), class_weights=weights, ready=None)
        graph, values, ran_out = torch.cuda.CUDAGraph(), None, False
        try:
            # With "thread_local", another thread can load batches meanwhile.
            with torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
                values = compute(step, own[count])
                ran_out = values is None
        except RuntimeError as error:
            if not ran_out and not out_of_memory(error):
                raise
        if values is None:
            _log.warning("The GPU's memory is too small to record steps as CUDA graphs, so steps are slower.")
            self._enabled = False
            self._recordings.clear()
            return None
        return Recording(graph, own, values)
