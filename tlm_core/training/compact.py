"""Token embeddings in 8 bits, as the file of an ensemble stores them.

About half of the weights of a small encoder are token embeddings, so 8 bits make the file much smaller. The output
layer has 32 bits, because it predicts regression targets of any size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EMBEDDINGS = "encoder.tokens.weight"
OUTPUT = "task.out"  # the output layer


def eight_bits(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return integers from -127 to 127, and a factor for each row, [rows, 1]. Their product is the rounded `weight`."""
    factors = np.maximum(np.abs(weight).max(axis=1, keepdims=True), np.float32(1e-9)) / np.float32(127)
    return np.rint(weight / factors).astype(np.int8), factors
