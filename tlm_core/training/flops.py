"""Floating-point operations of a training step, counted from shapes. A multiply-add counts as two."""

from __future__ import annotations

from typing import Protocol


class Sizes(Protocol):
    """What counts of operations and of memory need of a model's shape.

    `model.Shape` has it, and so has an estimate made without torch.
    """

    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def labels(self) -> int: ...
    @property
    def rotary(self) -> bool: ...


# Backward computes two products for each one of forward: by the inputs and by the weights.
FORWARD_AND_BACKWARD = 3


def forward(shape: Sizes, rows: int, length: int, masked: int, documents: int) -> float:
    """Matrix products of one forward pass over [rows, length] positions, padding included since it is computed."""
    hidden, gates = shape.hidden, 2 if shape.rotary else 1
    layer = 4 * hidden * hidden + (gates + 1) * hidden * shape.intermediate
    positions = rows * length
    encoder = shape.layers * positions * (layer + 2 * length * hidden)
    vocabulary = masked * hidden * (hidden + shape.vocab)
    task = documents * hidden * (hidden + shape.labels)
    return 2.0 * (encoder + vocabulary + task)


def newton_schulz(blocks: dict[tuple[int, int], int], steps: int = 5) -> float:
    """Matrix products of one Muon update; blocks: number of matrices of each shape."""
    total = 0.0
    for (rows, columns), count in blocks.items():
        small, large = min(rows, columns), max(rows, columns)
        total += count * steps * 2.0 * (2 * small * small * large + small**3)
    return total
