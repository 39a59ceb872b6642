"""Weights as an ensemble's file stores them. Token embeddings are half of a small encoder; 8 bits suffice for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EMBEDDINGS = "encoder.tokens.weight"


def eight_bits(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return numbers from -127 to 127 and the scale of each row, [rows, 1]. Their product is the rounded matrix."""
    scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True), np.float32(1e-9)) / np.float32(127)
    return np.rint(weight / scales).astype(np.int8), scales
