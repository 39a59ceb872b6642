"""Random numbers as a pure function of seed, purpose, and counter.

Training has no generator with a state, so the draws of step 500 do not depend on how the run reached it. A resumed
run therefore equals an uninterrupted one, and every worker can draw the whole step's numbers and use its share.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Stream(IntEnum):
    """The purpose of random numbers. Streams of one seed never overlap."""

    PASSAGES = 1
    TASK = 2
    MASK = 3
    FINETUNE = 5


def random_at(seed: int, stream: Stream, counter: int) -> np.random.Generator:
    """Return a fresh counter-based generator (Philox). counter: a step or an epoch."""
    key = np.array([seed % 2**64, int(stream)], dtype=np.uint64)
    start = np.array([0, 0, 0, counter], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=start))


def permutation(seed: int, stream: Stream, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """Return the order of `n` items in `epoch`."""
    return random_at(seed, stream, epoch).permutation(n)
