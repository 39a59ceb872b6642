"""Random numbers as a pure function of seed, purpose, and counter.

Training has no generator with a state. So a resumed run draws the numbers of an uninterrupted run, and each worker can
draw the numbers of the whole step.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Stream(IntEnum):
    """The purpose of random numbers. The streams of a seed do not overlap."""

    PASSAGES = 1
    TASK = 2
    MASK = 3
    FINETUNE = 5


def random_at(seed: int, stream: Stream, counter: int) -> np.random.Generator:
    """Return a new counter-based generator (Philox). counter: a step or an epoch."""
    key = np.array([seed % 2**64, int(stream)], dtype=np.uint64)
    start = np.array([0, 0, 0, counter], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=start))


def permutation(seed: int, stream: Stream, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """Return the order of n items in an epoch, [n]."""
    return random_at(seed, stream, epoch).permutation(n)
