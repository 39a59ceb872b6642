"""Random numbers as a pure function of (seed, purpose, counter).

Nothing in training keeps a running generator: what step 500 draws never depends on how step 499 was
reached. That makes a resumed run equal to an uninterrupted one by construction, and lets every worker
draw the whole step's numbers and use only its share of them.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Stream(IntEnum):
    """What the numbers are for; streams of one seed never overlap."""

    PASSAGES = 1
    TASK = 2
    MASK = 3
    DROPOUT = 4
    FINETUNE = 5


def random_at(seed: int, stream: Stream, counter: int) -> np.random.Generator:
    """A fresh counter-based generator (Philox) for this seed, purpose and counter (step or epoch)."""
    key = np.array([seed % 2**64, int(stream)], dtype=np.uint64)
    start = np.array([0, 0, 0, counter], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=start))


def permutation(seed: int, stream: Stream, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order of `n` items in `epoch`."""
    return random_at(seed, stream, epoch).permutation(n)
