"""FLOPs of a training step, from the sizes of a model. A multiplication with an addition counts as two."""

from __future__ import annotations

from collections.abc import Mapping

from tlm_core.training.architectures import Shape, architecture_of

# The backward pass computes two products for each of the forward pass: the gradients of inputs and of weights.
FORWARD_AND_BACKWARD = 3
MUON_STEPS = 5  # iterations that orthogonalize a matrix


def forward(shape: Shape, rows: int, length: int, masked: int, documents: int, described: int = 0) -> float:
    """Return the FLOPs of the matrix products in one forward pass over padded rows [rows, length]; see `products`."""
    return products(shape, rows * length, rows * length**2, masked, documents, described)


def products(shape: Shape, tokens: int, pairs: int, masked: int, documents: int, described: int = 0) -> float:
    """Return the FLOPs of the matrix products in one forward pass. pairs: token pairs that attention compares.

    masked: masked tokens. documents: documents with a label. described: texts with the bag-of-words loss.
    """
    encoder = shape.layers * (tokens * architecture_of(shape).layer_weights(shape) + 2 * pairs * shape.hidden)
    vocabulary = shape.hidden * (masked * (shape.hidden + shape.vocab) + described * shape.vocab)
    task = documents * shape.hidden * (shape.hidden + shape.labels)
    return 2.0 * (encoder + vocabulary + task)


def newton_schulz(matrices: Mapping[tuple[int, int], int]) -> float:
    """Return the FLOPs of one Muon update. matrices: number of matrices by their size (rows, columns)."""
    total = 0.0
    for (rows, columns), count in matrices.items():
        small, large = min(rows, columns), max(rows, columns)
        total += count * MUON_STEPS * 2.0 * (2 * small * small * large + small**3)
    return total
