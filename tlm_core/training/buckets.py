"""Sums of gradients over all workers, in buckets. The first sums start while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tlm_core.training.objective import Workers

BUCKET = 2**23  # parameters


@dataclass(frozen=True)
class Bucket:
    """A range [start, stop) of the flat gradient, in one part of the model. names: the parameters in the range.

    first: the smallest index of these parameters in the order of the model.
    """

    part: str
    start: int
    stop: int
    first: int
    names: frozenset[str]


def divide(parameters: Sequence[tuple[str, nn.Parameter]], size: int = BUCKET) -> list[Bucket]:
    """Return the buckets of all parameters, in the order of the backward pass. The order is the same on all workers.

    parameters: name and parameter, all in one flat buffer. A bucket has at most `size` values, or one larger tensor.
    """
    buckets: list[Bucket] = []
    for number, (name, parameter) in sorted(enumerate(parameters), key=lambda entry: entry[1][1].storage_offset()):
        start, part = parameter.storage_offset(), name.split(".")[0]
        bucket = Bucket(part, start, start + parameter.numel(), number, frozenset({name}))
        if buckets and buckets[-1].part == part and bucket.stop - buckets[-1].start <= size:
            last = buckets.pop()
            bucket = Bucket(part, last.start, bucket.stop, min(last.first, number), last.names | bucket.names)
        buckets.append(bucket)
    return sorted(buckets, key=lambda bucket: -bucket.first)


class Buckets:
    """Sums the gradient of a step over the workers. The sum of a bucket starts when all of its gradients are complete.

    All workers start the buckets in the same order. If a worker runs out of memory, this worker repeats the step, and
    the others wait. The worker does not start a bucket again, because the gradients of a started bucket are complete.
    dtype: type of the sums.
    """

    def __init__(
        self, gradient: Tensor, parameters: Sequence[tuple[str, nn.Parameter]], workers: Workers, dtype: torch.dtype
    ) -> None:
        self._gradient, self._workers = gradient, workers
        self._sums = torch.empty_like(gradient, dtype=dtype)
        self._buckets = divide(parameters, BUCKET)
        self._open: list[Bucket] = []  # buckets of this step that are not started
        self._started: list[tuple[Bucket, Callable[[], None]]] = []
        self._complete: set[str] = set()

    def begin(self, parts: Iterable[str]) -> None:
        """Begin the last backward pass of a step, or its repetition. parts: parts of the model that the step trains."""
        if not self._open and not self._started:
            wanted = set(parts)
            self._open = [bucket for bucket in self._buckets if bucket.part in wanted]
        self._complete = set()

    def complete(self, name: str) -> None:
        """Record that the gradient of the parameter `name` is complete. Start the buckets that are now complete."""
        self._complete.add(name)
        while self._open and self._open[0].names <= self._complete:
            self._start()

    def finish(self, parts: Iterable[str]) -> None:
        """Start the remaining buckets, wait for all buckets, and write the sums into the gradient."""
        if not self._open and not self._started:
            self.begin(parts)
        while self._open:
            self._start()
        for bucket, wait in self._started:
            wait()
            here = slice(bucket.start, bucket.stop)
            self._gradient[here].copy_(self._sums[here])
        self._started = []

    def _start(self) -> None:
        bucket = self._open.pop(0)
        here = slice(bucket.start, bucket.stop)
        self._sums[here].copy_(self._gradient[here])
        self._started.append((bucket, self._workers.start_sum(self._sums[here])))
