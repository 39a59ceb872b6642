"""Random numbers as a pure function of seed, purpose, and counter.

Training has no generator with a state. So a resumed run draws the numbers of an uninterrupted run, and each worker can
draw the numbers of the whole step.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Stream(IntEnum):
    """The purposes of random numbers. For one seed, the numbers of different purposes are independent."""

    PASSAGES = 1  # order of passages in the joint stage
    TASK = 2  # order of task texts in the joint stage
    MASK = 3  # masked tokens
    FINETUNE = 5  # order of task texts in finetuning


def random_at(seed: int, stream: Stream, counter: int) -> np.random.Generator:
    """Return a new counter-based generator (Philox). counter: number of the step or epoch that needs the numbers."""
    key = np.array([seed % 2**64, int(stream)], dtype=np.uint64)
    start = np.array([0, 0, 0, counter], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=start))


def permutation(seed: int, stream: Stream, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """Return the numbers 0 to n - 1 in the random order of an epoch, [n]."""
    return random_at(seed, stream, epoch).permutation(n)
